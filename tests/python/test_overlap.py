"""Copies behind forward and backward: nothing newer than the save is ever in its file."""

from __future__ import annotations

import copy
import os
import signal
import threading

import ckptd
import pytest
import torch
from ckptd import overlap
from ckptd.lightning import SidecarCheckpointIO
from ckptd.session import session_for
from harness import WAIT_SECONDS, wait_until
from objects import same
from test_fit_start import adam, make_trainer
from test_processes import in_child


class Gate:
    """Holds up the part of each copy that runs behind."""

    def __init__(self, copier):
        self.real = copier.copy
        self.open = threading.Event()
        self.foreground = threading.current_thread()
        copier.copy = self.copy

    def copy(self, *arguments):
        if threading.current_thread() is not self.foreground:
            assert self.open.wait(WAIT_SECONDS)
        self.real(*arguments)


@pytest.fixture
def training():
    """A model with parameters and buffers, its Adam after a step, and how to go on."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.BatchNorm1d(300))
    optimizer = torch.optim.Adam(model.parameters())

    def forward_and_backward():
        optimizer.zero_grad()
        model(torch.randn(8, 200)).square().sum().backward()

    forward_and_backward()
    optimizer.step()
    return model, optimizer, forward_and_backward


@pytest.fixture
def gate(client):
    client.reserve(1, images=1, wait=True)
    copier = session_for(client.address).copier
    gate = Gate(copier)
    yield gate
    gate.open.set()
    overlap.wait_for_copies()
    del copier.copy


def state_of(model, optimizer):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "note": ["x"]}


def go_on(work, gate, after=None):
    """Runs `work`, which must wait for the copy, and lets the copy go on only then.

    after: what `work` must have set before it waits.
    """
    ended = threading.Event()

    def run():
        work()
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert after is None or after.wait(WAIT_SECONDS)
    assert not ended.wait(0.1)
    gate.open.set()
    thread.join(WAIT_SECONDS)
    assert ended.is_set()


def test_step_waits_and_nothing_newer_is_saved(client, gate, training, tmp_path):
    model, optimizer, forward_and_backward = training
    state = state_of(model, optimizer)
    before = copy.deepcopy(state)
    save = client.save(state, tmp_path / "a.pt", overlap=optimizer)
    assert save.state == "STAGING"
    state["note"].append("y")
    forward_and_backward()  # which changes the running statistics
    assert not same(model.state_dict()["1.running_mean"], before["model"]["1.running_mean"])
    assert same(model.state_dict()["0.weight"], before["model"]["0.weight"])

    go_on(optimizer.step, gate)

    save.result()
    assert not same(model.state_dict()["0.weight"], before["model"]["0.weight"])
    assert same(torch.load(tmp_path / "a.pt"), before)


@pytest.mark.parametrize("named", [True, False])
def test_a_step_with_a_closure_waits_behind_it(client, gate, training, tmp_path, named):
    model, optimizer, forward_and_backward = training
    before = copy.deepcopy(state_of(model, optimizer))
    client.save(state_of(model, optimizer), tmp_path / "a.pt", overlap=optimizer)
    ran = threading.Event()

    def closure():
        forward_and_backward()
        ran.set()

    def step():
        optimizer.step(closure=closure) if named else optimizer.step(closure)

    go_on(step, gate, after=ran)
    assert not same(model.state_dict()["0.weight"], before["model"]["0.weight"])
    client.flush()
    assert same(torch.load(tmp_path / "a.pt"), before)


@pytest.mark.parametrize(
    "work",
    [
        lambda client, model, path: client.save({}, path / "b.pt"),
        lambda client, model, path: client.load(path / "a.pt"),
        lambda client, model, path: client.remove(path / "other"),
        lambda client, model, path: client.flush(),
        lambda client, model, path: client.close(),
        lambda client, model, path: model.load_state_dict(model.state_dict()),
        lambda client, model, path: model[0].load_state_dict(model[0].state_dict()),
    ],
    ids="save load remove flush close load_state_dict load_state_dict_of_a_part".split(),
)
def test_waits(work, client, gate, training, tmp_path):
    model, optimizer, _ = training
    state = state_of(model, optimizer)
    before = copy.deepcopy(state)
    save = client.save(state, tmp_path / "a.pt", overlap=[optimizer, model])
    go_on(lambda: work(client, model, tmp_path), gate)
    save.result()
    assert same(torch.load(tmp_path / "a.pt"), before)


def test_change_past_the_hooks_fails_the_save(client, gate, training, tmp_path):
    model, optimizer, _ = training
    client.save(state_of(model, optimizer), tmp_path / "a.pt", overlap=optimizer)
    with torch.no_grad():
        model[0].weight.add_(1)
    gate.open.set()
    with pytest.raises(ckptd.SaveError, match="was changed while") as caught:
        client.flush()
    assert caught.value.reason == "CHANGED_IN_COPY"
    client.raise_failed()  # once
    assert not os.path.exists(tmp_path / "a.pt")


def test_error_behind_is_raised_by_result(client, gate, training, tmp_path):
    def fail(*arguments):
        raise OSError("the copy is broken")

    model, optimizer, _ = training
    save = client.save(state_of(model, optimizer), tmp_path / "a.pt", overlap=optimizer)
    gate.real = fail
    gate.open.set()
    with pytest.raises(ckptd.SaveError, match="the copy is broken"):
        save.result()


class NoHooks(torch.optim.Optimizer):
    """Not made as an optimizer is."""

    def __init__(self):
        pass


@pytest.mark.parametrize(
    "parts, text",
    [
        (True, "neither an optimizer nor a module"),
        ([], "there is no optimizer"),
        (torch.nn.Linear(1, 1), "there is no optimizer"),
        (NoHooks(), "runs no hooks"),
    ],
)
def test_refuses_without_a_hook(parts, text, client, tmp_path):
    with pytest.raises(ValueError, match=text):
        client.save({}, tmp_path / "a.pt", overlap=parts)


def test_stream_does_not_overlap(daemon, training, tmp_path):
    model, optimizer, _ = training
    client = daemon.client(transport="grpc")
    save = client.save(state_of(model, optimizer), tmp_path / "a.pt", overlap=optimizer)
    assert save.state != "STAGING"
    save.result()


def test_forked_child_waits_for_nothing(client, gate, training, tmp_path):
    model, optimizer, _ = training
    client.save(state_of(model, optimizer), tmp_path / "a.pt", overlap=optimizer)
    assert in_child(overlap.wait_for_copies) == 0
    gate.open.set()
    client.flush()


PROGRAM = """
    import ckptd, os, signal, sys, threading, torch
    weight = torch.nn.Parameter(torch.ones(3_000_000))
    optimizer = torch.optim.SGD([weight])
    client = ckptd.default_client()
    copier = ckptd.session.session_for(client.address).copier
    real, main, ended = copier.copy, threading.current_thread(), threading.Event()
    threading._register_atexit(ended.set)
    def slow(*arguments):
        if threading.current_thread() is not main:
            if sys.argv[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            ended.wait()  # of the program; it waits for threads now
        real(*arguments)
    copier.copy = slow
    client.save({"weight": weight}, sys.argv[1], overlap=optimizer)
"""


def test_end_of_the_process_waits(run_python, tmp_path):
    assert run_python(PROGRAM, tmp_path / "a.pt", "end").returncode == 0
    wait_until((tmp_path / "a.pt").exists, "the checkpoint")
    assert torch.load(tmp_path / "a.pt")["weight"].sum() == 3_000_000


def test_death_in_the_copy_cancels_the_save(run_python, daemon, tmp_path):
    assert run_python(PROGRAM, tmp_path / "a.pt", "kill", check=False).returncode == -signal.SIGKILL
    request = ckptd.v1.checkpoint_pb2.ListSavesRequest(path=str(tmp_path / "a.pt"))
    wait_until(
        lambda: [s.state for s in daemon.call("ListSaves", request).saves] == [6], "CANCELLED"
    )
    assert not os.listdir(tmp_path)


def test_trainer(client, tmp_path):
    import lightning.pytorch as pl

    plugin = SidecarCheckpointIO(client=client, overlap=True)
    saved = []

    def at_step(trainer):
        saved.append(copy.deepcopy(dict(trainer.lightning_module.state_dict())))
        trainer.save_checkpoint(tmp_path / "step.ckpt")
        saved.append(overlap._running.copy())

    trainer, model = make_trainer(pl, plugin, tmp_path, at_step, adam)
    trainer.fit(model)
    assert saved[1], "the copy was over before save_checkpoint returned"
    loaded = torch.load(tmp_path / "step.ckpt", weights_only=False)
    assert same(dict(loaded["state_dict"]), saved[0])
    assert not same(dict(model.state_dict()), saved[0])
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    client.flush()
    with pytest.raises(ValueError, match="from no Trainer"):
        plugin.save_checkpoint({}, tmp_path / "b.ckpt")
