"""Python opens what C++ wrote, and C++ what Python wrote."""

from __future__ import annotations

import re
import zipfile

import objects
import pytest
import torch


@pytest.fixture
def tool(run, build):
    """Runs ckptd_interop_tool."""
    return lambda *arguments, **options: run(
        build / "tests" / "ckptd_interop_tool", *arguments, **options
    )


def plain(value):
    """A value as C++ knows it: plain dicts, tuples and tensors."""
    if isinstance(value, torch.nn.Parameter):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_python_opens_what_cpp_wrote(tool, tmp_path, transport):
    path = tmp_path / "everything.pt"
    tool("everything", "--to", path, "--transport", transport)
    assert [entry.name for entry in tmp_path.iterdir()] == ["everything.pt"]
    assert zipfile.ZipFile(path).testzip() is None
    check_everything(torch.load(path, weights_only=True))
    check_everything(torch.load(path, weights_only=True, mmap=True))


def check_everything(found):
    """That `found` is what the tool calls everything, aliases included."""
    base = torch.arange(24.0).view(4, 6)
    expected = {
        "base": base,
        "row": base[1],
        "transposed": base.t(),
        "again": base,
        "grad": torch.ones(2, dtype=torch.float64, requires_grad=True),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "bool": torch.arange(5) > 2,
        "bfloat16": torch.arange(5).to(torch.bfloat16),
        "conj": (torch.arange(3).to(torch.complex64) * 1j).conj(),
        "int64": torch.arange(3) * (1 << 40),
        "undefined": None,
        "list": [1, -(1 << 62), 0.1, None, True, "text €", 1 - 2j],
        "ints": [1, 2, 3],
        "floats": [0.5],
        "tensors": [base],
        "tuple": (1, 2, 3, 4),
        "nothing": (),
        7: "an int key",
    }
    expected["same list"] = expected["list"]
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert objects.same(found[key], value), key
    assert found["list"] is found["same list"]
    assert found["base"] is found["again"]
    address = found["base"].untyped_storage().data_ptr()
    assert found["row"].untyped_storage().data_ptr() == address


def copy_of(tool, tmp_path, value):
    """What Python reads of a copy that C++ made of Python's file."""
    source, target = tmp_path / "python.pt", tmp_path / "cpp.pt"
    torch.save(value, source)
    tool("copy", "--from", source, "--to", target)
    return torch.load(target, weights_only=True)


CASES = ("lightning", "adam", "tied_and_views", "ordered_state_dict", "many_tensors", "no_tensor")


@pytest.mark.parametrize("case", ["ordered_state_dict", "tensor", "all"])
def test_cpp_opens_what_python_wrote(tool, tmp_path, case):
    # All in one file: a program that loads LibTorch takes its time to start.
    if case == "all":
        value = {name: objects.CASES[name][0]() for name in CASES}
    else:
        value = objects.CASES[case][0]()
    assert objects.same(copy_of(tool, tmp_path, value), plain(value))


def test_cpp_keeps_aliases(tool, tmp_path):
    copy = copy_of(tool, tmp_path, objects.tied_and_views())
    addresses = {copy[key].untyped_storage().data_ptr() for key in ("base", "slice", "square")}
    assert len(addresses) == 1
    assert copy["tied"][0] is copy["tied"][1]


def test_cpp_opens_tensors_of_unusual_shape(tool, tmp_path):
    value = objects.shapes()
    del value["sparse"]
    assert objects.same(copy_of(tool, tmp_path, value), value)


def test_cpp_opens_every_dtype_that_it_has(tool, tmp_path):
    value = objects.dtypes()
    source, target = tmp_path / "python.pt", tmp_path / "cpp.pt"
    while True:
        torch.save(value, source)
        result = tool("copy", "--from", source, "--to", target, check=False)
        if result.returncode == 0:
            break
        found = re.search(
            r"checkpoint\[(torch\.(?:float8|uint).*)\] is of dtype (\w+), which this LibTorch does "
            "not have",
            result.stderr,
        )
        assert found and found[1] == f"torch.{found[2]}", result.stderr
        del value[found[1]]
    assert len(value) >= 12
    assert objects.same(torch.load(target, weights_only=True), value)


def test_cpp_names_what_it_cannot_hold(tool, tmp_path):
    for value, sentence in [
        ({"a": [objects.Custom()]}, "checkpoint[a][0] calls `objects Custom`"),
        ({"a": torch.eye(2).to_sparse()}, "checkpoint[a] calls `torch._utils _rebuild_sparse"),
        ({"a": 1 << 70}, "more than 64 bits"),
        ({(1, 2): 1}, "has a key that is a Tuple"),
    ]:
        torch.save(value, tmp_path / "python.pt")
        result = tool("copy", "--from", tmp_path / "python.pt", "--to", tmp_path / "x", check=False)
        assert result.returncode == 1
        assert sentence in result.stderr
        assert len(result.stderr.splitlines()) == 1
