"""SidecarCheckpointIO(checkpoint_io=...): a user's own CheckpointIO, made asynchronous."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import ckptd
import fsspec
import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from own_io import Echo, Mine


@pytest.fixture
def wrapper(client):
    return SidecarCheckpointIO(Mine(), client=client)


def test_save_runs_elsewhere_in_order_and_load_here(wrapper, tmp_path):
    path = tmp_path / "a.ckpt"
    state = {"w": torch.ones(3), "by": 0}
    wrapper.save_checkpoint(state, path)
    state["w"].zero_()
    loaded = wrapper.load_checkpoint(path)
    assert loaded["by"] not in (0, os.getpid())
    assert torch.equal(loaded["w"], torch.ones(3))
    wrapper.remove_checkpoint(path)
    wrapper.save_checkpoint({"n": 2}, path)
    assert wrapper.load_checkpoint(path)["n"] == 2
    wrapper.remove_checkpoint(path)
    wrapper.teardown()
    assert not path.exists()


def test_save_does_not_wait(client, tmp_path):
    go, path = tmp_path / "go", tmp_path / "a.ckpt"
    wrapper = SidecarCheckpointIO(Mine(until=str(go)), client=client)
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


def test_unpicklable_is_said_before_anything_happens(client, tmp_path):
    class Holds:
        def __init__(self):
            self.stack = sys._getframe()

    with pytest.raises(TypeError, match="Holds.*pickle"):
        SidecarCheckpointIO(Holds(), client=client).save_checkpoint({}, tmp_path / "a.ckpt")


def test_what_does_not_go_with_it(client):
    with pytest.raises(ValueError, match="checkpoint_io"):
        SidecarCheckpointIO(Mine(), client=client, visible="at_return")


def given(wrapper, path, *arguments, **named):
    """What the base's save_checkpoint is given for these, and its load_checkpoint."""
    wrapper.save_checkpoint({}, path, *arguments, **named)
    wrapper.client.flush()
    return torch.load(path, weights_only=False)


def test_it_is_given_what_the_caller_gives(client, tmp_path):
    wrapper, path = SidecarCheckpointIO(Echo(), client=client), tmp_path / "a.ckpt"
    assert given(wrapper, path) == ((path,), [])
    assert given(wrapper, path, storage_options=None) == ((path,), ["storage_options"])
    assert wrapper.load_checkpoint(path) == ((path,), {})
    for named in ({"weights_only": None}, {"map_location": "cpu", "weights_only": True}):
        assert wrapper.load_checkpoint(path, **named) == ((path,), named)
    wrapper.save_checkpoint(checkpoint={}, path=path, storage_options=None)  # as Fabric calls it
    wrapper.teardown()


def test_base_is_set_where_there_is_none(client, tmp_path):
    wrapper, base = SidecarCheckpointIO(client=client), Echo()
    wrapper.checkpoint_io = base
    assert wrapper.checkpoint_io is base
    wrapper.checkpoint_io = Mine()  # as stock: what is configured stays
    assert wrapper.checkpoint_io is base
    assert wrapper.load_checkpoint(tmp_path) == ((tmp_path,), {})
    with pytest.raises(AssertionError):
        wrapper.checkpoint_io = SidecarCheckpointIO(client=client)
    with pytest.raises(ValueError, match="checkpoint_io"):
        SidecarCheckpointIO(client=client, visible="at_return").checkpoint_io = base


def test_wrappers_of_lightning_within_it(client, tmp_path):
    async_io = importlib.import_module("lightning.pytorch.plugins").AsyncCheckpointIO
    with pytest.raises(AssertionError):
        SidecarCheckpointIO(client=client).checkpoint_io = async_io()
    inner = async_io()
    wrapper = SidecarCheckpointIO(async_io(inner), client=client)
    wrapper.checkpoint_io = base = Mine()
    assert inner.checkpoint_io is base
    wrapper.save_checkpoint({"n": 1, "by": 0}, tmp_path / "a.ckpt")
    wrapper.client.flush()  # for both of their threads
    assert torch.load(tmp_path / "a.ckpt")["n"] == 1
    # One that is given nothing has Lightning's own.
    io = SidecarCheckpointIO(async_io(), client=client)
    assert io.load_checkpoint(tmp_path / "a.ckpt")["n"] == 1
    # Their errors are raised again for ever; ours are not.
    for path, fails in (("c", True), ("d", False)):
        wrapper.save_checkpoint({"raise": fails}, tmp_path / path)
        if fails:
            with pytest.raises(ckptd.SaveError, match="no luck"):
                wrapper.client.flush()
    wrapper.teardown()
    with pytest.raises(ValueError, match="already"):
        SidecarCheckpointIO(async_io(SidecarCheckpointIO()))


def test_removal_that_fails_is_told_at_exit(run_python, tmp_path):
    result = run_python(
        """
        import sys
        from lightning.fabric import Fabric
        from ckptd.lightning import SidecarCheckpointIO
        sys.path.append(sys.argv[2])
        from own_io import Mine
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[SidecarCheckpointIO(Mine())])
        fabric.strategy.checkpoint_io.remove_checkpoint(sys.argv[1] + "/missing.ckpt")
        """,
        tmp_path,
        Path(__file__).parent,
    )
    assert "missing.ckpt: FileNotFoundError" in result.stderr


def test_durable_is_what_the_base_has_done(client, tmp_path):
    wrapper = SidecarCheckpointIO(Mine(), client=client, wait="durable")
    wrapper.save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").exists()
    wrapper.teardown()


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


def test_registered_backend(client, tmp_path):
    ckptd.backend.register("mine", Mine)
    save = client.save({"n": 1}, tmp_path / "a.ckpt", backend="mine")
    save.result()
    assert client.load(tmp_path / "a.ckpt", backend="mine")["n"] == 1
