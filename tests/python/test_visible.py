"""visible="at_return": a path that did not exist is a whole checkpoint when save returns."""

from __future__ import annotations

import os
from pathlib import Path

import ckptd
import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from ckptd.v1 import checkpoint_pb2 as pb
from harness import wait_until
from lightning_models import make_model, make_trainer

STATE = {"weight": torch.arange(300_000, dtype=torch.float32), "step": 7}


def same_state(path, state=STATE) -> bool:
    """Whether any reader of the file system finds that state there."""
    found = torch.load(path)
    return found["step"] == state["step"] and torch.equal(found["weight"], state["weight"])


class Held:
    """A path that does not exist and at which nothing is done before `let_go`."""

    def __init__(self, daemon, client, path: Path) -> None:
        self.path = path
        client.save({}, path).result()
        self._session = ckptd.client.session_for(daemon.address)
        request = pb.BeginLoadRequest(session_id=self._session.id, path=str(path))
        self._load = self._session.call("BeginLoad", request, 10).load_id
        path.unlink()

    def let_go(self) -> None:
        self._session.call("EndLoad", pb.EndLoadRequest(load_id=self._load), 10)


@pytest.fixture
def held(daemon, client, tmp_path):
    held = Held(daemon, client, tmp_path / "a.ckpt")
    yield held
    held.let_go()


def test_a_reader_finds_it_at_return_and_keeps_it(client, held):
    save = client.save(STATE, held.path, visible="at_return")
    assert os.listdir(held.path.parent).count("a.ckpt") == 1
    assert held.path.is_symlink() and held.path.stat().st_size == save.total_bytes
    assert same_state(held.path)
    ckptd.verify(held.path)
    mapped = torch.load(held.path, mmap=True)
    at_return = held.path.read_bytes()
    held.let_go()
    save.result()
    assert not held.path.is_symlink() and held.path.read_bytes() == at_return
    # What somebody has open stays what it is, whatever is saved next.
    for step in range(3):
        client.save({**STATE, "weight": -STATE["weight"]}, held.path.with_name(f"{step}")).result()
    assert torch.equal(mapped["weight"], STATE["weight"])


def test_an_existing_path_keeps_its_file(client, held):
    torch.save({**STATE, "step": 6}, held.path)
    save = client.save(STATE, held.path, visible="at_return")
    assert not held.path.is_symlink() and same_state(held.path, {**STATE, "step": 6})
    held.let_go()
    save.result()
    assert same_state(held.path)


def test_by_default_nothing_is_there_before_it_is_durable(client, held):
    save = client.save(STATE, held.path)
    assert not held.path.is_symlink() and not held.path.exists()
    held.let_go()
    save.result()


def test_what_comes_by_a_stream_has_no_link(daemon, held):
    client = daemon.client(transport="grpc")
    save = client.save(STATE, held.path, visible="at_return")
    assert not held.path.is_symlink()
    held.let_go()
    save.result()
    assert same_state(held.path)
    client.close()


def test_a_save_that_fails_takes_its_link_away(client, held):
    save = client.save(STATE, held.path, visible="at_return")
    os.truncate(os.readlink(held.path), 0)
    held.let_go()
    with pytest.raises(ckptd.SaveError) as caught:
        save.result()
    assert caught.value.reason == "IMAGE_CHANGED"
    assert not held.path.is_symlink()


def test_a_link_that_is_somebody_elses_stays(client, held, tmp_path):
    save = client.save(STATE, held.path, visible="at_return")
    held.path.unlink()
    held.path.symlink_to(tmp_path)
    client_cancel(client, save)
    assert os.readlink(held.path) == str(tmp_path)


def client_cancel(client, save) -> None:
    """Cancels a save, and sees that it is."""
    session = ckptd.client.session_for(client.address)
    cancelled = session.call("CancelSave", pb.CancelSaveRequest(name=save.name), 10)
    assert cancelled.state == pb.Save.CANCELLED


def test_cancelled(client, held):
    save = client.save(STATE, held.path, visible="at_return")
    client_cancel(client, save)
    assert not held.path.is_symlink()
    held.let_go()
    client.save(STATE, held.path, visible="at_return").result()
    assert same_state(held.path)


@pytest.fixture
def mortal(make_daemon, tmp_path):
    """A daemon of the test's own, a client of it, and a path that it holds."""
    daemon = make_daemon()
    client = daemon.client()
    yield daemon, client, Held(daemon, client, tmp_path / "a.ckpt")
    client.close()


def test_a_killed_daemon_leaves_the_link_and_the_next_one_replaces_it(mortal):
    daemon, client, held = mortal
    save = client.save(STATE, held.path, visible="at_return")
    daemon.kill()
    assert held.path.is_symlink() and same_state(held.path)
    daemon.start()
    wait_until(lambda: not held.path.is_symlink(), "the durable file to replace the link")
    assert same_state(held.path)
    save.result()


def test_a_link_whose_image_is_lost_goes_with_the_next_start(mortal):
    daemon, client, held = mortal
    save = client.save(STATE, held.path, visible="at_return")
    daemon.kill()
    os.unlink(os.readlink(held.path))  # as after a reboot
    assert held.path.is_symlink() and not held.path.exists()
    daemon.start()
    assert not held.path.is_symlink()
    with pytest.raises(ckptd.SaveError, match="IMAGE_LOST|is gone"):
        save.result()


def test_wrong_choice(client, tmp_path):
    with pytest.raises(ValueError, match="visible: 'now'.*at_return"):
        client.save({}, tmp_path / "a.ckpt", visible="now")
    with pytest.raises(ValueError, match="visible: 'now'.*at_return"):
        SidecarCheckpointIO(client=client, visible="now")
    # What is copied later is not there at the return.
    with pytest.raises(ValueError, match="overlap: .*at_return"):
        client.save({}, tmp_path / "a.ckpt", overlap=torch.nn.Linear(1, 1), visible="at_return")
    with pytest.raises(ValueError, match="overlap: .*at_return"):
        SidecarCheckpointIO(client=client, overlap=True, visible="at_return")


def listings(pl, folder, plugin):
    """What the folder holds after each save of a run."""
    seen = []

    class Trainer(pl.Trainer):
        def save_checkpoint(self, *args, **kwargs):
            super().save_checkpoint(*args, **kwargs)
            names = os.listdir(folder)
            seen.append({n: torch.load(folder / n, weights_only=False)["epoch"] for n in names})

    trainer = make_trainer(pl, folder, plugin, max_epochs=4, save_top_k=-1, save_last="link")
    trainer.__class__ = Trainer
    trainer.fit(make_model(pl))
    return seen


def test_a_trainer_finds_what_torch_checkpoint_io_leaves(pl, client, tmp_path):
    plugin = SidecarCheckpointIO(client=client, visible="at_return")
    ours = listings(pl, tmp_path / "ours", plugin)
    assert ours == listings(pl, tmp_path / "stock", None)
    assert len(ours) == 4
    assert not any(path.is_symlink() for path in (tmp_path / "ours").glob("epoch*"))


@pytest.mark.parametrize("how", [{"wait": "durable"}, {"visible": "at_return"}])
def test_what_is_removed_is_gone_at_return(client, tmp_path, how):
    plugin = SidecarCheckpointIO(client=client, **how)
    for n in range(50):  # by chance it might be
        path = tmp_path / f"{n}.ckpt"
        path.touch()
        plugin.remove_checkpoint(path)
        assert not path.exists()


def test_a_removal_waits_for_no_save_in_the_background(client, held):
    plugin = SidecarCheckpointIO(client=client, visible="at_return")
    old = held.path.with_name("old.ckpt")
    old.touch()
    client.save({"x": 1}, held.path)
    plugin.remove_checkpoint(old)
    assert old.exists()
    held.let_go()
    client.flush()
    assert not old.exists()
