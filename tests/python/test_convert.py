"""ckptctl convert: what it makes of files of torch.save and of safetensors, and what it refuses."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
from collections import OrderedDict

import pytest
import torch
from harness import CKPTCTL, WAIT_SECONDS
from objects import assert_same_tree
from zips import damage

import ckptd


@pytest.fixture
def convert(daemon):
    def run(source, target, backend, *arguments, check=True):
        command = [CKPTCTL, "--address", daemon.address, "convert", source, target]
        done = subprocess.run(
            [*map(str, command), "--backend", backend, *arguments],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def tensors():
    """All that safetensors can hold, and whatever dots alone do not tell."""
    w = torch.arange(12.0).reshape(3, 4)
    return {
        "model": OrderedDict([("l.weight", w), ("turned", w.t()), ("tied", w), ("row", w[1])]),
        "list": [torch.tensor(3), (torch.ones(2, dtype=torch.bfloat16), torch.zeros(1))],
        "cube": torch.arange(24, dtype=torch.int16).reshape(2, 3, 4).permute(2, 0, 1),
        "wide": torch.ones(1).expand(3, 5),
        "every second": torch.arange(10)[1::2],
        "new": torch.ones(2).to(torch.float8_e4m3fn),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "none": {},
        "no elements": torch.empty(0, 3),
        "": {"ü": torch.tensor([True, False])},
    }


def plain(state):
    """With a Parameter as the tensor that comes back."""
    return {**state, "learned": state["learned"].detach()}


def assert_same_tensor(found, wanted):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert found.is_contiguous()
    assert torch.equal(found.float(), wanted.float())


def assert_same(found, wanted):
    assert_same_tree(found, wanted, assert_same_tensor)


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.pt"


def test_there_and_back(client, convert, paths):
    torch_file, safetensors, back = paths
    torch.save(tensors(), torch_file)
    convert(torch_file, safetensors, "safetensors")
    ckptd.verify(safetensors)
    found = client.load(safetensors)
    assert_same(found, plain(tensors()))
    assert found["model"]["tied"] is found["model"]["l.weight"]
    convert(safetensors, back, "torch")
    ckptd.verify(back)
    for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}):
        loaded = torch.load(back, **options)
        assert_same(loaded, plain(tensors()))
        assert loaded["model"]["tied"] is loaded["model"]["l.weight"]
    assert loaded["wide"].untyped_storage().nbytes() == 60


def test_it_is_the_file_that_the_client_saves(client, convert, paths):
    torch_file, safetensors, other = paths
    state = {"a": {"w": torch.rand(3, 4)}, "b": torch.ones(2), "c": [torch.zeros(1)]}
    torch.save(state, torch_file)
    convert(torch_file, safetensors, "safetensors")
    client.save(state, other, backend="safetensors").result()
    assert safetensors.read_bytes() == other.read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("safetensors"), reason="needs safetensors")
def test_files_of_the_package_of_that_name(convert, paths):
    from safetensors.torch import load_file, save_file

    torch_file, safetensors, _ = paths
    state = {"a.w": torch.rand(3, 4), "b": torch.ones(2, dtype=torch.float16)}
    save_file(state, safetensors, metadata={"format": "pt", "note": "mine", "tied": "a.w"})
    done = convert(safetensors, torch_file, "torch")
    assert "left out" in done.stderr and "note" in done.stderr
    found = torch.load(torch_file, weights_only=True)
    assert found["tied"] is found["a.w"] and torch.equal(found["a.w"], state["a.w"])
    torch.save({"a": {"w": state["a.w"]}}, torch_file)
    convert(torch_file, safetensors, "safetensors")
    assert torch.equal(load_file(safetensors)["a.w"], state["a.w"])


def test_twenty_thousand_tensors(client, convert, paths):
    torch_file, safetensors, back = paths
    state = {f"layers.{i}.weight": torch.full((2,), float(i)) for i in range(20_000)}
    torch.save(state, torch_file)
    convert(torch_file, safetensors, "safetensors")
    convert(safetensors, back, "torch")
    found = torch.load(back, weights_only=True)
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_torch_file_becomes_another_one_as_it_is(convert, paths):
    torch_file, _, back = paths
    base = torch.arange(10.0)
    torch.save({"n": argparse.Namespace(lr=0.1), "view": base[2:4], 0: {1, 2}}, torch_file)
    for backend in ("torch", "xla"):
        convert(torch_file, back, backend)
        found = torch.load(back, weights_only=False)
        assert found["n"].lr == 0.1 and found[0] == {1, 2}
        assert found["view"].untyped_storage().nbytes() == 40
    torch.save({"w": torch.ones(1, device="meta")}, torch_file)
    assert "device meta" in convert(torch_file, back, "xla", check=False).stderr


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"n": argparse.Namespace(), "w": torch.ones(1)}, "only Python can make: argparse.Namespace"),
        ({"x": {3: torch.ones(1)}}, "state['x'] has the key 3, which is no string"),
        ({"x": [{1}]}, "state['x'][0] is __builtin__.set, and no tensor"),
        ({"w": torch.ones(2, device="meta")}, "device meta"),
        ({"w": torch.view_as_complex(torch.ones(2, 2)).conj()}, "conjugate"),
        ({"w": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"epoch": 3, "w": torch.ones(1)}, "'epoch' is an int"),
        ({"x": float("nan")}, "no finite number"),
    ],
)
def test_what_has_no_place_is_refused_by_its_name(convert, paths, state, why):
    source, target, _ = paths
    torch.save(state, source)
    done = convert(source, target, "safetensors", check=False)
    assert done.returncode == 1 and why in done.stderr, done.stderr
    assert not target.exists()


def test_damaged_files_and_others_are_refused(convert, paths, tmp_path):
    source, target, safetensors = paths
    torch.save({"w": torch.ones(3)}, source)
    convert(source, safetensors, "safetensors")
    damage(source)
    assert "is corrupt at byte" in convert(source, target, "safetensors", check=False).stderr
    content = bytearray(safetensors.read_bytes())
    content[-1] ^= 1
    safetensors.write_bytes(content)
    assert "is corrupt at byte" in convert(safetensors, target, "torch", check=False).stderr
    for text in (b"", b"text", b"\x80\x02}q\x00."):
        source.write_bytes(text)
        assert str(source) in convert(source, target, "torch", check=False).stderr
    source.unlink()
    assert "not found" in convert(source, target, "torch", check=False).stderr
    assert not target.exists()
    assert "has only" in convert(safetensors, target, "no-such", check=False).stderr


def test_it_takes_its_turn_and_replaces_what_is_there(client, convert, paths):
    source, target, _ = paths
    target.write_text("old")
    client.save({"w": torch.ones(3)}, source)  # is not durable yet
    convert(source, target, "safetensors")
    assert client.load(target)["w"].tolist() == [1, 1, 1]


def test_json_has_a_line_for_each_change(convert, paths):
    source, target, _ = paths
    torch.save({"w": torch.ones(3)}, source)
    lines = convert(source, target, "safetensors", "--output", "json").stdout.splitlines()
    last = json.loads(lines[-1])
    assert (last["state"], last["path"], last["backend"]) == ("SUCCEEDED", str(target), "safetensors")


def test_without_a_daemon_it_says_so(paths):
    command = [CKPTCTL, "--address", "unix:/nowhere/ckptd.sock", "convert", *paths[:2], "-b", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 3 and "is ckptd running" in done.stderr
