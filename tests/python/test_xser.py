"""The backend "xla-xser": a file for each tensor, as torch_xla.utils.serialization has it."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from objects import assert_same_tree
from test_inspect import ckptctl as run_ckptctl
from zips import damage, forge, record

import ckptd
from ckptd import xser

_HAS_XLA = importlib.util.find_spec("torch_xla") is not None
needs_xla = pytest.mark.skipif(not _HAS_XLA, reason="needs torch_xla: tests/conformance/xla/run")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.ckpt"


class Settings:
    """An object with a tensor in it."""

    def __init__(self):
        self.scale = torch.tensor(0.5)


def state():
    w = torch.arange(12.0).reshape(3, 4)
    model = OrderedDict([("w", w), ("tied", w), ("turned", w.t()), ("row", w[1])])
    model._metadata = {"": {"version": 1}}
    return {
        "model": model,
        "moments": [torch.ones(2, dtype=torch.bfloat16), (torch.tensor(3), torch.empty(0, 3))],
        "learned": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "wanted": torch.ones(2, requires_grad=True),
        "mask": torch.tensor([True, False]),
        "sparse": torch.eye(3).to_sparse(),
        "wide": torch.tensor([1, 2**63], dtype=torch.uint64),
        "epoch": 3,
        "name": "ü",
        "none": None,
    }


def assert_same_tensor(found, wanted):
    assert (found.dtype, found.requires_grad) == (wanted.dtype, wanted.requires_grad)
    assert torch.equal(found.to_dense(), wanted.to_dense())


def assert_same(found, wanted):
    assert_same_tree(found, wanted, assert_same_tensor)


def files(path):
    return sorted(os.listdir(f"{path}.tensors"))


@pytest.mark.parametrize("weights_only", [None, True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_state_comes_back_as_it_was(client, path, weights_only, explicit):
    client.save(state(), path, backend="xla-xser")  # the load waits for it
    backend = {"backend": "xla-xser"} if explicit else {}
    found = client.load(path, weights_only=weights_only, **backend)
    assert_same(found, state())
    assert found["model"]["tied"] is found["model"]["w"]
    assert found["model"]._metadata == {"": {"version": 1}}
    assert len(files(path)) == 10
    for name in files(path):
        ckptd.verify(f"{path}.tensors/{name}")
        tensor = torch.load(f"{path}.tensors/{name}", weights_only=True)
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert sorted(os.listdir(path.parent)) == ["last.ckpt", "last.ckpt.tensors"]


def test_another_one_takes_its_place_and_all_of_it_is_removed(client, path):
    client.save(state(), path, backend="xla-xser").result()
    before = set(files(path))
    client.save({"w": torch.ones(3), "x": torch.zeros(1)}, path, backend="xla-xser").result()
    assert len(files(path)) == 2 and not before & set(files(path))
    assert client.load(path)["w"].tolist() == [1, 1, 1]
    client.save({"n": 1}, path, backend="xla-xser").result()
    assert files(path) == [] and client.load(path, backend="xla-xser") == {"n": 1}
    client.remove(path, backend="xla-xser")
    assert os.listdir(path.parent) == []
    with pytest.raises(FileNotFoundError):
        client.load(path, backend="xla-xser")


def test_a_torch_file_in_its_place_is_read_as_one(client, path):
    client.save(state(), path, backend="xla-xser").result()
    client.save({"n": 1}, path).result()
    assert client.load(path) == {"n": 1}


def test_what_is_damaged_or_missing_is_an_error(client, path, tmp_path):
    other = tmp_path / "older.ckpt"
    client.save({"w": torch.arange(3.0)}, path, backend="xla-xser").result()
    client.save({"w": torch.zeros(1)}, other, backend="xla-xser").result()
    file = f"{path}.tensors/{files(path)[0]}"
    damage(file)
    with pytest.raises(ckptd.CorruptCheckpointError, match="tensor_"):
        client.load(path)
    assert client.load(path, verify=False)["w"].numel() == 3
    os.unlink(file)
    with pytest.raises(ckptd.CorruptCheckpointError, match="missing"):
        client.load(path)
    assert client.load(path, fallback=[other])["w"].tolist() == [0]


def test_objects_with_tensors(client, path):
    client.save({"a": Settings(), "b": {torch.ones(1)}}, path, backend="xla-xser").result()
    found = client.load(path, weights_only=False)
    assert found["a"].scale == 0.5 and found["b"].pop() == 1
    assert len(files(path)) == 2


def test_without_a_daemon_it_is_read_all_the_same(client, path):
    client.save(state(), path, backend="xla-xser").result()
    alone = ckptd.Client("unix:/nonexistent", on_unavailable="fallback")
    with pytest.warns(RuntimeWarning):
        assert_same(alone.load(path), state())
    with pytest.raises(ckptd.DaemonUnavailableError, match="only the daemon has"):
        alone.save(state(), path, backend="xla-xser")


def test_what_is_accepted_survives_the_daemon(make_daemon, path):
    daemon = make_daemon()
    client = daemon.client()
    client.save({"w": torch.zeros(4)}, path, backend="xla-xser").result()
    save = client.save({"w": torch.ones(4)}, path, backend="xla-xser")
    daemon.kill()
    daemon.start()
    save.result(timeout=60)
    assert client.load(path)["w"].tolist() == [1, 1, 1, 1]
    assert len(files(path)) == 1


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_reference_that_is_no_number_leads_nowhere(client, path, weights_only):
    os.mkdir(f"{path}.tensors")
    state = {"w": xser.TensorReference("../../secret")}
    pickled = pickle.dumps(state, 2).replace(xser._OURS, xser._THEIRS)
    names = ("data.pkl", pickled), ("version", b"3")
    path.write_bytes(forge([record(f"archive/{name}", data) for name, data in names]))
    with pytest.raises(ckptd.CorruptCheckpointError, match="no number"):
        client.load(path, weights_only=weights_only)


def test_the_plugin_for_xla_strategies_saves_so(client, path):
    pytest.importorskip("pytorch_lightning")
    from ckptd.lightning import XLASidecarCheckpointIO

    plugin = XLASidecarCheckpointIO(backend="xla-xser", client=client)
    plugin.save_checkpoint({"state_dict": OrderedDict(w=torch.ones(2)), "epoch": 1}, path)
    found = plugin.load_checkpoint(path)
    assert found["epoch"] == 1 and found["state_dict"]["w"].tolist() == [1, 1]
    plugin.remove_checkpoint(path)
    plugin.teardown()
    assert os.listdir(path.parent) == []


# ---- With torch_xla


def _plain(value):
    """As torch_xla's loader leaves containers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_ckptctl_tells_its_tensors_and_its_damage(daemon, client, path):
    client.save(state(), path, backend="xla-xser").result()

    def ckptctl(command, code=0):
        options = ["--backend", "xla-xser"]
        return run_ckptctl(command, path, *options, address=daemon.address, code=code)

    told = [line.split() for line in ckptctl("inspect")[0].splitlines()]
    assert ["model.w", "float32", "[3,", "4]", "48", "B"] in told
    assert ["model.tied", "float32", "[3,", "4]", "48", "B"] in told
    assert ["moments.1.0", "int64", "[]", "8", "B"] in told
    ckptctl("verify")
    tensors = [path.parent / f"{path.name}.tensors" / name for name in files(path)]
    for file in (path, tensors[0], tensors[-1]):
        content = file.read_bytes()
        damage(file, "data.pkl")
        assert "CRC-32" in ckptctl("verify", code=1)[0]
        file.write_bytes(content)
    ckptctl("verify")
    tensors[-1].unlink()
    assert tensors[-1].name in ckptctl("verify", code=1)[0]


@needs_xla
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_torch_xla_loads_it(client, path, device):
    import torch_xla.utils.serialization as theirs

    wanted = state()
    if device == "xla":
        wanted["model"] = OrderedDict((k, v.to("xla")) for k, v in wanted["model"].items())
    client.save(wanted, path, backend="xla-xser").result()
    found = theirs.load(str(path))
    assert_same(found, _plain(state()))
    assert_same(client.load(path)["model"], state()["model"])


@needs_xla
def test_what_torch_xla_saves_is_loaded_and_replaced(client, path):
    import torch_xla.utils.serialization as theirs

    w = torch.arange(12.0).reshape(3, 4).to("xla")
    theirs.save({"model": OrderedDict(w=w, tied=w), "list": [torch.ones(2).to("xla"), 5]}, str(path))
    assert files(path) == ["tensor_0.pt", "tensor_1.pt"]
    for weights_only in (None, True, False):
        found = client.load(path, weights_only=weights_only)
        assert torch.equal(found["model"]["w"], w.cpu()) and found["list"][1] == 5
        assert found["model"]["tied"] is found["model"]["w"]
    client.save({"w": w}, path, backend="xla-xser").result()
    assert len(files(path)) == 1
    assert torch.equal(theirs.load(str(path))["w"], w.cpu())
