"""The quick way to load is torch.load's, or is not taken."""

from __future__ import annotations

import collections
import io
import os
import zipfile

import pytest
import torch
from ckptd import unpickling
from ckptd.zip_directory import Source, read_directory
from objects import CASES, assert_same_tree, same
from zips import saved

#: Of objects.CASES, those whose pickles name nothing unusual.
PLAIN = {
    "lightning",
    "adam",
    "tied_and_views",
    "ordered_state_dict",
    "many_tensors",
    "tensor",
    "no_tensor",
}


def load(content, map_location=None):
    """As LentMemory does it."""
    memory = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
    source = Source("the file", len(content), lambda at, n: content[at : at + n])
    return unpickling.load(memory, source, read_directory(source), map_location)


def refused(content, map_location=None):
    with pytest.raises(unpickling.NotPlainError):
        load(content, map_location)
    return True


def rewritten(content, **replaced):
    """The zip file with other records, or without them where one is None; `_` is `/`, or a dot."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            name = info.filename.split("/", 1)[1].replace("/", "_").replace(".", "_")
            data = replaced.get(name, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_load_gives(name):
    make, _ = CASES[name]
    content = saved(make())
    if name not in PLAIN:
        assert refused(content)
        return
    wanted = torch.load(io.BytesIO(content), weights_only=False)
    found = load(content)
    assert same(found, wanted) and same(load(content, "cpu"), wanted)


def test_aliases_are_kept():
    base = torch.arange(10.0)
    found = load(saved({"a": base, "b": base, "c": base[2:], "p": torch.nn.Parameter(base)}))
    assert found["a"] is found["b"]
    storages = {found[key].untyped_storage()._cdata for key in "abcp"}
    assert len(storages) == 1 and type(found["p"]) is torch.nn.Parameter


def test_what_the_tensors_say_is_kept():
    state = {
        "conj": torch.ones(3, dtype=torch.complex64).conj(),
        "grad": torch.ones(3, requires_grad=True),
        "half": torch.ones(2, 2, dtype=torch.bfloat16).t(),
        "empty": torch.empty(0, 3),
        "storage": torch.arange(3.0)._typed_storage(),
        "ordered": collections.OrderedDict(x=1),
    }
    content = saved(state)
    found, wanted = load(content), torch.load(io.BytesIO(content), weights_only=False)
    assert type(found.pop("storage")) is type(wanted.pop("storage"))

    def assert_same_tensor(one, other):
        assert same(one, other)

    assert_same_tree(found, wanted, assert_same_tensor)


@pytest.mark.parametrize("map_location", ["meta", {"cpu": "cpu"}, lambda s, _: s, 0, "cuda:0"])
def test_other_places_are_torch_loads(map_location):
    assert refused(saved(), map_location)


def test_a_tensor_of_a_device_that_is_asked_for_is_torch_loads():
    content = rewritten(saved(), data_pkl=data_pkl().replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0"))
    assert refused(content)
    assert torch.equal(load(content, torch.device("cpu"))["w"], torch.arange(3.0))


def data_pkl():
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        return archive.read("archive/data.pkl")


@pytest.mark.parametrize(
    "records",
    [
        {"byteorder": b"big"},
        {"data_pkl": b"\x80\x04" + data_pkl()[2:]},
        {"data_pkl": data_pkl()[:-1]},
        {"data_0": b"short"},
        {"data_0": None},
        {"version": None, "data_1": None},
    ],
)
def test_other_files_are_torch_loads(records):
    assert refused(rewritten(saved(), **records))


def test_a_torchscript_archive_is_torch_loads():
    file = io.BytesIO(saved())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert refused(file.getvalue())


def test_without_a_byteorder():
    assert torch.equal(load(rewritten(saved(), byteorder=None))["w"], torch.arange(3.0))


def test_while_torch_makes_other_tensors():
    content = saved()
    with torch.device("meta"):
        assert refused(content)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert refused(content)
    assert load(content)


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\nX\x05\0\0\0falseR",
        b"cos\nsystem\n.",
        b"ctorch\nload\n",
        b"ctorch.serialization\nFloatStorage\n",
        b"ctorch._utils\n_import_dotted_name\nX\x09\0\0\0os.systemR",
        b"cbuiltins\neval\n",
        # What is named is not to be changed for those who come after.
        b"ctorch\nFloatStorage\n(}X\x05\0\0\0dtypeNstb",
        b"ccollections\nOrderedDict\n(}X\x08\0\0\0__init__Nstb",
    ],
)
def test_a_hostile_pickle_calls_nothing(body, monkeypatch):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("called"))
    assert refused(rewritten(saved(), data_pkl=b"\x80\x02" + body + b"."))


def test_a_pickle_changes_no_function():
    name, before = "_rebuild_parameter", dict(vars(torch._utils._rebuild_parameter))
    body = b"ctorch._utils\n" + name.encode() + b"\n}X\x01\0\0\0xK\x01sb."
    load(rewritten(saved(), data_pkl=b"\x80\x02" + body))
    assert vars(torch._utils._rebuild_parameter) == before
