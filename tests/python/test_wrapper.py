"""SidecarCheckpointIO(checkpoint_io=...): a user's own CheckpointIO, made asynchronous."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import ckptd
import fsspec
import psutil
import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from harness import REPO, wait_until
from lightning_models import PACKAGES, make_model, make_trainer

# As the expert guide has it; with what tests want of it.
_BASE = '''
import os
import time

import torch


class Mine:
    """A CheckpointIO of one's own."""

    def __init__(self, until=""):
        self.until = until

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        while self.until and not os.path.exists(self.until):
            time.sleep(0.01)
        if checkpoint.get("raise"):
            raise ValueError("no luck")
        if checkpoint.get("exit"):
            os._exit(3)
        print("writing", os.path.basename(path))
        if storage_options == "folder":
            os.makedirs(path)
            path = os.path.join(path, "state.pt")
        torch.save({"by": os.getpid(), **checkpoint}, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(path, weights_only=False)

    def remove_checkpoint(self, path):
        os.remove(path)

    def teardown(self):
        pass
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The class, in a module that only the trainer's sys.path leads to."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "my_checkpoint_io.py").write_text(_BASE)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("my_checkpoint_io").Mine
    sys.modules.pop("my_checkpoint_io", None)


@pytest.fixture
def wrapper(mine, client):
    return SidecarCheckpointIO(mine(), client=client)


def test_save_runs_elsewhere_in_order_and_load_here(wrapper, tmp_path):
    path = tmp_path / "a.ckpt"
    state = {"w": torch.ones(3)}
    wrapper.save_checkpoint(state, path)
    state["w"].zero_()
    loaded = wrapper.load_checkpoint(path)
    assert loaded["by"] != os.getpid()
    assert torch.equal(loaded["w"], torch.ones(3))
    wrapper.remove_checkpoint(path)
    wrapper.save_checkpoint({"n": 2}, path)
    assert wrapper.load_checkpoint(path)["n"] == 2
    wrapper.remove_checkpoint(path)
    wrapper.teardown()
    assert not path.exists()


def test_save_does_not_wait(mine, client, tmp_path):
    go, path = tmp_path / "go", tmp_path / "a.ckpt"
    wrapper = SidecarCheckpointIO(mine(until=str(go)), client=client)
    wrapper.save_checkpoint({"n": 1}, path)
    assert not path.exists()
    go.touch()
    wrapper.teardown()
    assert path.exists()


def test_storage_options_and_a_checkpoint_of_a_folder(wrapper, tmp_path):
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a", storage_options="folder")
    wrapper.teardown()
    assert os.listdir(tmp_path / "a") == ["state.pt"]


def test_its_exception_comes_once_with_its_traceback(wrapper, tmp_path):
    wrapper.save_checkpoint({"raise": True}, tmp_path / "a.ckpt")
    with pytest.raises(ckptd.SaveError, match=r"(?s)a\.ckpt: ValueError: no luck.*line \d+") as info:
        wrapper.teardown()
    assert info.value.reason == "BACKEND_FAILED"
    wrapper.save_checkpoint({"n": 1}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert (tmp_path / "b.ckpt").exists()


def test_the_end_of_its_process_is_that_saves_error(wrapper, tmp_path):
    wrapper.save_checkpoint({"exit": True}, tmp_path / "a.ckpt")
    with pytest.raises(ckptd.SaveError, match="exit code 3") as info:
        wrapper.client.flush()
    assert info.value.reason == "HOST_DIED"
    wrapper.save_checkpoint({"n": 1}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert (tmp_path / "b.ckpt").exists()


def test_a_host_that_is_killed_is_started_again(mine, make_daemon, tmp_path):
    daemon = make_daemon()
    wrapper = SidecarCheckpointIO(mine(), client=daemon.client())
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    wrapper.client.flush()
    for host in psutil.Process(daemon.process.pid).children():
        host.send_signal(signal.SIGKILL)
    # Until the daemon has seen it, a task may still go to it, and dies with it.
    wait_until(lambda: "ended with signal 9" in daemon.log.read_text(), "the host's end")
    wrapper.save_checkpoint({"n": 2}, tmp_path / "b.ckpt")
    wrapper.teardown()
    assert (tmp_path / "b.ckpt").exists()
    assert "writing b.ckpt" in daemon.log.read_text()
    # Nobody needs it any more.
    host = psutil.Process(daemon.process.pid)
    wait_until(lambda: not host.children(recursive=True), "the end of the host")


def test_unpicklable_is_said_before_anything_happens(client, tmp_path):
    class Holds:
        def __init__(self):
            self.stack = sys._getframe()

    with pytest.raises(TypeError, match="Holds.*pickle"):
        SidecarCheckpointIO(Holds(), client=client).save_checkpoint({}, tmp_path / "a.ckpt")


def test_what_does_not_go_with_it(mine, client):
    with pytest.raises(ValueError, match="checkpoint_io"):
        SidecarCheckpointIO(mine(), client=client, visible="at_return")


def test_durable_is_what_the_base_has_done(mine, client, tmp_path):
    wrapper = SidecarCheckpointIO(mine(), client=client, wait="durable")
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").exists()
    wrapper.teardown()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_trainer_with_it(package, wrapper, tmp_path):
    pl = importlib.import_module(package)
    checkpoints = tmp_path / "checkpoints"
    trainer = make_trainer(pl, checkpoints, wrapper, save_top_k=1, monitor="epoch", mode="max")
    model = make_model(pl)
    checkpoints.mkdir()
    trainer.fit(model)
    assert os.listdir(checkpoints) == ["epoch=1-step=10.ckpt"]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, ckpt_path=str(checkpoints / "epoch=1-step=10.ckpt"))
    assert "epoch=2-step=15.ckpt" in os.listdir(checkpoints)


def test_outlives_the_trainer_that_defines_it(daemon, tmp_path):
    path, go = tmp_path / "a.ckpt", tmp_path / "go"
    program = _BASE + textwrap.dedent(
        f"""
        import ckptd, signal
        from ckptd.lightning import SidecarCheckpointIO

        client = ckptd.Client(address={daemon.address!r}, on_unavailable="raise")
        io = SidecarCheckpointIO(Mine(until={str(go)!r}), client=client)
        io.save_checkpoint({{"w": torch.ones(3)}}, {str(path)!r})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    script = tmp_path / "train.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(REPO / "client" / "python")}
    done = subprocess.run([sys.executable, str(script)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    go.touch()
    wait_until(path.exists, "the save")
    assert torch.equal(torch.load(path)["w"], torch.ones(3))


def test_another_daemon_goes_on_with_it(mine, make_daemon, tmp_path):
    daemon = make_daemon()
    go, path = tmp_path / "go", tmp_path / "a.ckpt"
    wrapper = SidecarCheckpointIO(mine(until=str(go)), client=daemon.client())
    wrapper.save_checkpoint({"n": 7}, path)
    daemon.kill()
    daemon.start()
    go.touch()
    wrapper.teardown()
    assert torch.load(path)["n"] == 7


def test_memory_url_is_served_here_with_one_warning(client):
    io = SidecarCheckpointIO(client=client)
    with pytest.warns(RuntimeWarning, match="memory://") as caught:
        io.save_checkpoint({"n": 1}, "memory://box/a.ckpt")
        assert io.load_checkpoint("memory://box/a.ckpt")["n"] == 1
        io.remove_checkpoint("memory://box/a.ckpt")
    assert len([one for one in caught if "memory://" in str(one.message)]) == 1
    io.teardown()


_BOX = """
from fsspec.implementations.local import LocalFileSystem


class Box(LocalFileSystem):
    protocol = "box"

    @classmethod
    def _strip_protocol(cls, path, name=""):
        return str(path).replace("box://", "/")
"""


def test_other_url_is_served_in_a_process_in_order(client, tmp_path, monkeypatch):
    (tmp_path / "my_box.py").write_text(_BOX)
    monkeypatch.syspath_prepend(str(tmp_path))
    fsspec.register_implementation("box", importlib.import_module("my_box").Box, clobber=True)
    io = SidecarCheckpointIO(client=client)
    url = f"box://{tmp_path}/a.ckpt".replace("///", "//")
    with pytest.warns(RuntimeWarning, match="box://"):
        io.save_checkpoint({"n": 1}, url)
        io.client.flush()
        assert io.load_checkpoint(url)["n"] == 1
    io.teardown()
    assert Path(tmp_path / "a.ckpt").exists()


def test_registered_backend(mine, client, tmp_path):
    ckptd.backend.register("mine", mine)
    save = client.save({"n": 1}, tmp_path / "a.ckpt", backend="mine")
    save.result()
    assert client.load(tmp_path / "a.ckpt", backend="mine")["n"] == 1
