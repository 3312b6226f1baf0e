"""The short way to data.pkl: the same bytes as pickle's, made once for each structure."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import torch
from ckptd import pickle_writer
from ckptd.capture import by_pickle, capture
from ckptd.pickle_writer import Structures, write
from ckptd.structure import UnusualError, trace
from objects import CASES, lightning_like


def pickled(obj) -> bytes:
    return by_pickle(obj, "object").pickle


def test_it_works_here():
    assert pickle_writer.works(pickled)
    assert write(trace(lightning_like())) == pickled(lightning_like())


def random_object(rng, pool, depth=0):
    """A tree of all that has a short way, with parts that stand in several places."""
    roll = rng.random()
    if pool and roll < 0.15:
        return rng.choice(pool)
    if roll < 0.4:
        made = random_tensor(rng, pool)
    elif roll < 0.7 or depth == 4:
        made = rng.choice([None, True, 0, -7, 256, 65536, -(1 << 31), 1 << 63, -(1 << 47), 0.1])
        made = rng.choice([made, f"text {rng.random()}", "é\u20ac", "", "0", "3"])
    else:
        size = rng.choice([0, 1, 2, 3, 4, 9, 12])
        items = [random_object(rng, pool, depth + 1) for _ in range(size)]
        kind = rng.choice([list, tuple, dict, OrderedDict])
        named = [(f"{rng.random()} key", item) for item in items]
        made = kind(named if kind in (dict, OrderedDict) else items)
        if kind is OrderedDict and rng.random() < 0.5:
            made._metadata = OrderedDict(version={"of": size})
    pool.append(made)
    return made


def random_tensor(rng, pool):
    old = [one for one in pool if isinstance(one, torch.Tensor) and one.numel() > 3]
    if old and rng.random() < 0.4:
        one = rng.choice(old)
        return rng.choice([one[1:], one.t() if one.dim() == 2 else one[::2], one.detach()])
    shape = rng.choice([(), (0,), (3,), (4, 5), (2, 3, 4, 5), (1000,)])
    made = torch.zeros(shape, dtype=rng.choice([torch.float32, torch.bfloat16, torch.int64]))
    return made.requires_grad_() if made.is_floating_point() and rng.random() < 0.2 else made


def test_bytes_are_those_of_pickle():
    for seed in range(300):
        rng = random.Random(seed)
        obj = [random_object(rng, []) for _ in range(3)]
        assert write(trace(obj)) == pickled(obj), seed


@pytest.mark.parametrize("count", [1, 7, 8, 999, 1000, 1001, 2000, 2001])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_batches_are_those_of_pickle(kind, count):
    tensors = kind((f"layer {i}", torch.zeros(i % 3 + 1)) for i in range(count))
    numbers = kind((i, i) for i in range(count))
    for obj in (tensors, numbers, list(numbers), list(tensors.values()), tuple(numbers)):
        assert write(trace(obj)) == pickled(obj)


class Tensor(torch.Tensor):
    """One of a class of its own."""


def with_attribute():
    tensor = torch.zeros(2)
    tensor.note = "mine"
    return tensor


UNUSUAL = {
    "class": lambda: Tensor([1.0]),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(2)),
    "attribute": with_attribute,
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "negative": lambda: torch.zeros(2, dtype=torch.complex64).conj().imag,
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "string of torch's": lambda: {"storage": 1, "cpu": torch.zeros(1)},
    "tuple subclass": lambda: {"a": torch.Size([1, 2])},
    "two storages of one memory": lambda: two_storages(),
    "itself": lambda: loop(),
}


def two_storages():
    memory = bytearray(16)
    return [torch.frombuffer(memory, dtype=torch.float32) for _ in range(2)]


def loop():
    inner = []
    outer = (inner,)
    inner.append(outer)
    return outer


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_is_left_to_pickle(name):
    obj = UNUSUAL[name]()
    with pytest.raises(UnusualError):
        trace(obj)
    assert capture(obj, structures=Structures()).pickle == pickled(obj)


def base():
    a, b = torch.zeros(4, 4), torch.zeros(16)
    tensors = {f"layer {i}": torch.zeros(4) for i in range(12)}
    weights = OrderedDict(a=a, b=b, c=a)
    weights._metadata = {"version": 1}
    return {"epoch": 3, "lr": 0.0, "flag": True, "w": weights, "many": tensors, "names": ("x", "y")}


def change(path, value):
    def apply(obj):
        *parents, last = path
        for step in parents:
            obj = obj[step]
        obj[last] = value(obj.get(last)) if callable(value) else value

    return apply


def set_metadata(obj):
    obj["w"]._metadata = {"version": 2}


CHANGES = {
    "scalar": change(["epoch"], 4),
    "its type": change(["flag"], 1),
    "number to float": change(["epoch"], 3.0),
    "sign of zero": change(["lr"], -0.0),
    "string": change(["names"], ("x", "z")),
    "length": change(["names"], ("x",)),
    "added key": change(["w", "d"], torch.zeros(1)),
    "added in bulk": change(["many", "layer x"], torch.zeros(4)),
    "renamed in bulk": lambda obj: obj["many"].update({"other": obj["many"].pop("layer 11")}),
    "order": lambda obj: obj["w"].move_to_end("a"),
    "metadata": set_metadata,
    "shape": change(["w", "a"], lambda t: t.view(2, 8)),
    "stride": change(["w", "a"], lambda t: t.t()),
    "offset": change(["w", "b"], lambda t: t[:15].as_strided((15,), (1,), 1)),
    "in place": lambda obj: obj["many"]["layer 3"].t_().resize_(2),
    "data": lambda obj: setattr(obj["many"]["layer 3"], "data", torch.zeros(5)),
    "dtype": change(["many", "layer 5"], lambda t: t.int()),
    "storage size": change(["many", "layer 5"], lambda t: torch.zeros(9)[:4]),
    "requires_grad": lambda obj: obj["many"]["layer 5"].requires_grad_(),
    "not the same any more": change(["w", "c"], lambda t: t.clone()),
    "equal, another object": change(["w", "c"], lambda t: t.detach()),
    "the same now": lambda obj: obj["many"].update({"layer 1": obj["many"]["layer 0"]}),
    "one storage now": lambda obj: obj["many"].update({"layer 1": obj["many"]["layer 0"][:]}),
    "unusual now": change(["many", "layer 5"], torch.nn.Parameter),
    "one of them": change(["many", "layer 5"], 5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_pickle_is_seen(name):
    structures = Structures()
    obj = base()
    before = capture(obj, structures=structures)
    CHANGES[name](obj)
    after = capture(obj, structures=structures)
    assert after.pickle == pickled(obj)
    assert after.pickle != before.pickle
    assert after.sizes == by_pickle(obj, "object").sizes


@pytest.fixture
def writers(monkeypatch):
    """One entry for each pickle that was written from its beginning."""
    made = []
    assert pickle_writer.works(pickled)  # which writes once in each process

    class Writer(pickle_writer._Writer):
        def __init__(self, found):
            made.append(found)
            super().__init__(found)

    monkeypatch.setattr(pickle_writer, "_Writer", Writer)
    return made


def test_same_structure_is_written_once(writers):
    structures = Structures()
    first = capture(base(), structures=structures)
    other = capture({"other": 1}, structures=structures)
    assert len(writers) == 2
    obj = base()  # of other tensors
    obj["many"]["layer 3"].add_(7)
    again = capture(obj, structures=structures)
    assert again.pickle == first.pickle
    assert [s.data_ptr() for s in again.storages] == again.addresses
    assert obj["many"]["layer 3"].data_ptr() in again.addresses
    assert capture({"other": 1}, structures=structures).pickle == other.pickle
    assert len(writers) == 2


def progress(step, text="epoch 1", rate=0.1):
    return {"global_step": step, "net": {f"{i} w": torch.zeros(i) for i in range(9)},
            "loops": [step, {"rate": rate, "best": text, text: (step, text)}], "last": "0"}  # fmt: skip


VALUES = {
    "wider": progress(70_000),
    "narrower": progress(1),
    "of many bytes": progress(-(1 << 70)),
    "float": progress(300, rate=-2.5),
    "string": progress(300, text="a longer name, \u00fc"),
    "all": progress(301, "x", 0.3),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_alone_are_written_anew(name, writers):
    structures = Structures()
    for obj in (progress(300), VALUES[name], progress(300), VALUES[name]):
        assert capture(obj, structures=structures).pickle == pickled(obj)
    assert len(writers) == 1


OTHERS = {
    "an int for a float": progress(300, rate=1),
    "a float for an int": progress(0.5),
    "a string for an int": progress("300"),
    "an object for another": {**progress(300), "last": progress(300)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_are_other_structures(name, writers):
    structures = Structures()
    for obj in (progress(300), OTHERS[name]):
        assert capture(obj, structures=structures).pickle == pickled(obj)
    assert len(writers) == 2


def test_a_digit_is_one_object_where_python_has_it_so():
    structures = Structures()
    for text in ("7", "8", "text", "7"):
        obj = {"a": text, "b": {"key": torch.zeros(2)}, "c": str(int("7"))}
        assert capture(obj, structures=structures).pickle == pickled(obj)


def test_a_number_that_only_pickle_writes_leaves_what_is_known():
    structures = Structures()
    for step in (1, 1 << 4096, 2):
        obj = {"a": step, "b": [step]}
        assert capture(obj, structures=structures).pickle == pickled(obj)


@pytest.mark.parametrize("name", CASES)
def test_structures_are_told_apart(name):
    structures = Structures()
    for _ in range(2):
        obj = CASES[name][0]()
        assert capture(obj, structures=structures).pickle == pickled(obj)
