"""The daemon dies, and is back, between two calls of a client that belong together."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from ckptd import transfer
from ckptd.session import Session


@pytest.fixture
def dies_when_asked(make_daemon, monkeypatch):
    """A daemon that dies over the next GetSave, and is back before the client hears of it."""
    daemon = make_daemon()
    ask = Session.get_save

    def arm() -> None:
        def die(session, name):
            monkeypatch.setattr(Session, "get_save", ask)
            daemon.kill()
            try:
                return ask(session, name)
            finally:
                daemon.start()

        monkeypatch.setattr(Session, "get_save", die)

    return daemon, arm


def test_a_flush_goes_on(dies_when_asked, tmp_path):
    daemon, arm = dies_when_asked
    client = daemon.client()
    save = client.save({"a": torch.ones(10)}, tmp_path / "a.ckpt")
    arm()
    client.flush()
    assert save.ended
    assert save.state == "SUCCEEDED"


def test_a_client_that_has_just_reconnected_does_so_again(dies_when_asked, tmp_path):
    daemon, arm = dies_when_asked
    client = daemon.client()
    client.save({"a": torch.ones(10)}, tmp_path / "a.ckpt")
    daemon.kill()
    daemon.start()
    arm()
    assert client.load(tmp_path / "a.ckpt")["a"].sum() == 10
    client.save({"a": torch.zeros(10)}, tmp_path / "b.ckpt").result()


@pytest.fixture
def client_before_restart(make_daemon, monkeypatch, tmp_path):
    """Makes a client that has saved ones to a.ckpt, and whose daemon dies, and is back, just before
    the next call of a function of `module`."""

    def make(transport, module, name):
        daemon = make_daemon()
        client = daemon.client(transport=transport)
        client.save({"a": torch.ones(10)}, tmp_path / "a.ckpt").result()
        function = getattr(module, name)

        def restart(*arguments):
            monkeypatch.setattr(module, name, function)
            daemon.kill()
            daemon.start()
            return function(*arguments)

        monkeypatch.setattr(module, name, restart)
        return client

    return make


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_save_whose_daemon_was_restarted_since_it_began(
    client_before_restart, tmp_path, transport
):
    client = client_before_restart(transport, transfer, "_fill")
    client.save({"a": torch.zeros(10)}, tmp_path / "a.ckpt").result()
    assert torch.load(tmp_path / "a.ckpt")["a"].sum() == 0


def test_a_load_whose_daemon_was_restarted_since_it_began(client_before_restart, tmp_path):
    client = client_before_restart("grpc", transfer.stream, "read")
    assert client.load(tmp_path / "a.ckpt")["a"].sum() == 10


@pytest.fixture
def no_collection():
    """Python frees what nothing refers to any more, and looks for no rings."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_state_is_let_go_that_was_saved_over_a_restart(
    client_before_restart, tmp_path, transport
):
    client = client_before_restart(transport, transfer, "_fill")
    tensor = torch.zeros(10)
    state = weakref.ref(tensor)
    client.save({"a": tensor}, tmp_path / "a.ckpt").result()
    del tensor
    assert state() is None


@pytest.mark.usefixtures("no_collection")
def test_what_a_caller_has_is_let_go_whose_load_broke_off(client_before_restart, tmp_path):
    client = client_before_restart("grpc", transfer.stream, "read")

    def load() -> weakref.ref:
        batch = torch.ones(10)
        client.load(tmp_path / "a.ckpt")
        return weakref.ref(batch)

    assert load()() is None
