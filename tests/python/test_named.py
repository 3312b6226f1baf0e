"""Backends that take named tensors: what a state becomes, and that it comes back the same."""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict

import pytest
import torch
from harness import BUILD, Daemon

import ckptd
from ckptd import named, safetensors_file
from ckptd.zip_directory import Source


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("named"))
    yield daemon
    daemon.clean_up()


def nested():
    """Whatever dots alone do not tell."""
    w = torch.arange(12.0).reshape(3, 4)
    return {
        "model": OrderedDict([("l.weight", w), ("turned", w.t()), ("tied", w), ("row", w[1])]),
        "list": [torch.tensor(3), (torch.ones(2, dtype=torch.bfloat16),)],
        "none": {},
        "no elements": torch.empty(0, 3),
        "": {"ü": torch.tensor([True, False])},
    }


def assert_same(found, wanted):
    """Types, order of keys, and tensors."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            assert_same(one, other)
    elif isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("transport", ["shm", "grpc"])
@pytest.mark.parametrize("lend", [True, False])
def test_a_state_of_tensors_comes_back_from_safetensors(server, tmp_path, transport, lend):
    client, path = server.client(transport=transport), tmp_path / "a.safetensors"
    client.save(nested(), path, backend="safetensors").result()
    ckptd.verify(path)
    found = client.load(path, lend=lend)
    assert_same(found, nested())
    assert found["model"]["tied"] is found["model"]["l.weight"]
    assert client.load(path, map_location="meta")["model"]["row"].device.type == "meta"


def test_without_a_daemon_the_file_is_read_all_the_same(server, tmp_path):
    path = tmp_path / "a.safetensors"
    server.client().save(nested(), path, backend="safetensors").result()
    alone = ckptd.Client("unix:/nonexistent", on_unavailable="fallback")
    with pytest.warns(RuntimeWarning):
        assert_same(alone.load(path), nested())
    with pytest.raises(ckptd.DaemonUnavailableError, match="only the daemon has"):
        alone.save(nested(), path, backend="safetensors")


@pytest.mark.skipif(not importlib.util.find_spec("safetensors"), reason="needs safetensors")
def test_the_package_of_that_name_reads_it(server, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    state = {"a": {"w": torch.rand(3, 4)}, "b": torch.ones(2)}
    server.client().save(state, path, backend="safetensors").result()
    found = load_file(path)
    assert found.keys() == {"a.w", "b"}
    assert torch.equal(found["a.w"], state["a"]["w"])


def test_what_the_format_cannot_hold_is_the_error_of_the_save(server, tmp_path):
    with pytest.raises(ckptd.SaveError, match="'epoch' is an int") as caught:
        server.client().save({"epoch": 3}, tmp_path / "a", backend="safetensors")
    assert caught.value.reason == "INVALID_TENSOR"
    assert not (tmp_path / "a").exists()


def test_every_flipped_byte_is_found(server, tmp_path):
    path = tmp_path / "a.safetensors"
    server.client().save({"w": torch.arange(8)}, path, backend="safetensors").result()
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ckptd.CheckpointError):
            ckptd.verify(path)


# ---- Without a daemon


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({3: torch.ones(1)}, r"state\['x'\] has the key 3"),
        ({"y": object()}, r"state\['x'\]\['y'\] is a builtins.object"),
        (float("nan"), "is nan"),
        (torch.ones(2, device="meta"), "device meta"),
        (torch.ones(2).to_sparse(), "sparse"),
        ("\ud800", "UTF-8"),
    ],
)
def test_what_has_no_name_is_refused_by_its_own(part, why):
    with pytest.raises(ckptd.UnpicklableError, match=why) as caught:
        named.capture_named({"x": part}, "/p", "safetensors")
    assert 'backend="torch"' in str(caught.value)


def test_a_state_within_itself_is_refused():
    ring = {}
    ring["ring"] = ring
    with pytest.raises(ckptd.UnpicklableError, match="a part of itself"):
        named.capture_named(ring, "/p", "safetensors")


def test_dots_are_all_that_plain_dicts_need():
    found = named.capture_named({"a": {"b": torch.ones(1)}, "n": 1, "s": None}, "/p", "x")
    assert [spec.name for spec in found.specs] == ["a.b"]
    assert found.options == {"ckptd.values": '{"n":1,"s":null}'}
    assert named.split({"a.b": 0, "n": 1, "s": None}) == {"a": {"b": 0}, "n": 1, "s": None}


def test_names_that_clash_are_told_apart():
    state = {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), "a.b.1": 5}
    found = named.capture_named(state, "/p", "x")
    leaves = {spec.name: tensor for spec, tensor in zip(found.specs, ["ones", "zeros"])}
    leaves.update(json.loads(found.options["ckptd.values"]))
    back = named.nest(found.options["ckptd.tree"], leaves)
    assert back == {"a": {"b": "ones"}, "a.b": "zeros", "a.b.1": 5}


def write(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def source_of(content):
    return Source("f", len(content), lambda at, n: content[at : at + n])


def entry(**changed):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}


def test_a_file_of_others_is_a_dict_by_name_with_its_aliases():
    told = {"__metadata__": {"format": "pt", "tied": "a.w"}, "a.w": entry()}
    content = bytearray(write(told, torch.ones(2).numpy().tobytes()))
    memory = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
    found = safetensors_file.load(memory, source_of(content), None)
    assert found.keys() == {"a.w", "tied"} and found["tied"] is found["a.w"]
    assert torch.equal(found["a.w"], torch.ones(2))


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(data_offsets=[0, 4])},
        {"a": entry(dtype="F31")},
        {"a": entry(dtype="load")},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=[1], data_offsets=[4, 8])},
        {"a": entry(), "b": entry()},
        {"a": entry(shape=[4], data_offsets=[0, 16])},
        {"a": 3},
        {"__metadata__": {"x": 1}, "a": entry()},
        {},
    ],
)
def test_a_header_that_does_not_fit_its_file_is_corrupt(header, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(write(header, bytes(8)))
    with pytest.raises(ckptd.CorruptCheckpointError):
        ckptd.verify(path)


def test_a_plugin_in_a_file_loads_what_it_saved(tmp_path):
    plugins = next(iter(BUILD.rglob("npy.so")), None)
    if plugins is None:
        pytest.skip("the example is not built")
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o700)
    (folder / plugins.name).write_bytes(plugins.read_bytes())
    (folder / plugins.name).chmod(0o600)
    daemon = Daemon(tmp_path, "--plugin-dir", folder)
    try:
        name = next(b.name for b in daemon.status().backend_details if "hosted" in b.capabilities)
        client = daemon.client()
        state = {"a": {"w": torch.rand(3, 4)}, "b": torch.arange(5)}
        client.save(state, tmp_path / "saved", backend=name).result()
        assert_same(client.load(tmp_path / "saved", backend=name), state)
        client.remove(tmp_path / "saved", backend=name)
        assert not (tmp_path / "saved").exists()
    finally:
        daemon.clean_up()


def training(step=1):
    """A state whose tensors are whole, each in memory of its own, and one in two places."""
    weight = torch.rand(3, 4)
    return {"net": {"w": weight, "b": torch.rand(4), "tied": weight}, "step": step}


LATER = {
    "the same": training(),
    "another number": training(2),
    "another name": {**training(), "more": torch.ones(1)},
    "not tied any more": {**training(), "net": {k: torch.rand(3, 4) for k in ("w", "b", "tied")}},
    "a part": {**training(), "net": {"w": torch.rand(9, 4)[:3], "b": torch.rand(4)}},
    "one memory": (lambda t: {"net": {"w": t[:3], "b": t[3]}, "step": 1})(torch.rand(4, 4)),
    "transposed": (lambda s: {**s, "net": {**s["net"], "b": torch.rand(2, 2).t()}})(training()),
    "no plain tensor": {"net": {"w": torch.nn.Parameter(torch.rand(2))}},
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_known_of_the_last_state_changes_nothing(name):
    last = named.LastNamed()
    for state in (training(), LATER[name], training(), LATER[name]):
        found = named.capture_named(state, "/p", "x", last)
        fresh = named.capture_named(state, "/p", "x")
        assert (found.specs, found.options) == (fresh.specs, fresh.options)
        assert (found.sizes, found.dtypes) == (fresh.sizes, fresh.dtypes)
        assert [s.tolist() for s in found.storages] == [s.tolist() for s in fresh.storages]
        if found.addresses is not None:
            assert found.addresses == [s.data_ptr() for s in found.storages]


def test_a_state_of_the_same_names_is_not_walked(monkeypatch):
    last = named.LastNamed()
    first = named.capture_named(training(), "/p", "x", last)
    monkeypatch.setattr(named, "_Walk", None)
    assert named.capture_named(training(), "/p", "x", last).specs == first.specs
