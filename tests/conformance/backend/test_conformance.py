"""What every backend keeps, or refuses by name: tensors, names, paths, removals, errors."""

from __future__ import annotations

import collections
import re
import tempfile
import threading
from pathlib import Path

import ckptd
import objects
import pytest
import torch
from harness import REPO
from tested import plain

#: The reasons of the one table.
REASONS = set(re.findall(r"`([A-Z_]{4,})`", (REPO / "docs" / "errors.md").read_text("utf-8")))


def small(seed):
    """A state that no backend may refuse."""
    return {"w": torch.full((2, 3), float(seed)), "n": {"b": torch.arange(seed, seed + 4)}}


def check(backend, state, path, *names):
    """Saves and loads; returns whether that went well rather than being refused by name."""
    error = backend.refusal(state, path)
    if error is not None:
        assert any(name in str(error) for name in names), f"{names[:5]}: {error}"
        assert not path.exists(), "was refused, and is there"
        return False
    assert plain(backend.load(path)) == plain(state)
    return True


def words_of(state):
    """What a refusal of it may name."""
    parts = state if isinstance(state, (list, tuple)) else []
    if isinstance(state, dict):
        parts = state.values()
    own = list(state) if isinstance(state, dict) else []
    return own + [word for part in parts for word in words_of(part)]


OPTIONS = ("ckptd.aliases", "ckptd.tree", "ckptd.values", "state")


# ---- Tensors


def test_dtypes(backend, folder):
    kept = {
        name.replace("torch.", "")
        for name, tensor in objects.dtypes().items()
        if check(backend, {name.replace(".", "-"): tensor}, folder / name, name.replace(".", "-"))
    }
    assert "float32" in kept
    print(f"{backend.subject}: keeps {', '.join(sorted(kept))}")


def test_shapes(backend, folder):
    tensors = objects.shapes()
    tensors.pop("no_tensor_twice")
    tensors["a_rank_of_12"] = torch.rand((1, 2) * 6)
    tensors["large"] = torch.rand(300_000)
    tensors["not_a_number"] = torch.tensor([float("nan"), float("-inf"), -0.0])
    kept = {name for name, one in tensors.items() if check(backend, {name: one}, folder / name, name)}
    assert kept >= {"one", "transposed", "large", "not_a_number"}


def states():
    """What trainers save, and what is rarely saved."""
    base = torch.arange(12.0)
    weight = torch.nn.Parameter(torch.rand(2, 3))
    return {
        "flat": {"w": base.clone()},
        "nested": {"model": {"a": {"w": torch.rand(2), "b": torch.rand(3)}}, "step": torch.tensor(7)},
        "values": {"w": torch.rand(2), "epoch": 3, "lr": 1e-3, "name": "größe", "on": True, "no": None},
        "lists": {"groups": [{"w": torch.rand(2)}, (torch.rand(1), "x")]},
        "ordered": collections.OrderedDict(b=torch.rand(1), a=torch.rand(1)),
        "dots": {"a.b": torch.rand(1), "a": {"b": torch.rand(2)}},
        "tied": {"w": weight, "again": weight, "alias": weight.detach()},
        "views": {"base": base, "slice": base[3:7], "strided": base[::3], "t": base.view(3, 4).t()},
        "tensor": torch.arange(3.0),
        "no_tensor": {"a": [1, "b", None, 2.5]},
        "anything": {"set": {1, 2}, "bytes": b"\x00\xff", "big": 10**30, "range": range(3)},
    }


@pytest.mark.parametrize("case", states())
def test_states(backend, folder, case):
    state = states()[case]
    kept = check(backend, state, folder / case, *OPTIONS, *words_of(state))
    assert kept or case not in ("flat", "nested")


def test_nothing(backend, folder):
    for name, state in (("empty", {}), ("empty within", {"a": {}})):
        check(backend, state, folder / name, *OPTIONS)


@pytest.fixture
def folder_in_memory():
    """For what would take a disk minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ckptd-test-") as folder:
        yield Path(folder)


def test_twenty_thousand_tensors(backend, folder_in_memory):
    folder = folder_in_memory
    numbers = torch.arange(20_000).unbind()
    backend.save({f"t{at}": number.clone() for at, number in enumerate(numbers)}, folder / "a").result()
    loaded = backend.load(folder / "a")
    assert torch.equal(torch.stack([loaded[f"t{at}"] for at in range(20_000)]), torch.arange(20_000))
    backend.remove(folder / "a")
    assert not list(folder.iterdir())


# ---- Names and paths

NAMES = [
    "größe Ψ 重み 🔥",
    " begins with a space",
    "ends with one ",
    "tab\there",
    "line\nbreak",
    "carriage\rreturn",
    'quotes"\'',
    "back\\slash",
    "../../up",
    "/etc/passwd",
    ".",
    "-",
    "__metadata__",
    "n" * 255,
    "n" * 256,
    "ü" * 2000,
    "%s%n",
    "(1,2,)",
    "\x01\x7f",
]


def test_names(backend, folder):
    for at, name in enumerate(NAMES):
        visible = re.split(r"[\x00-\x1f\x7f]", name)[0][:60]
        check(backend, {name: torch.arange(3)}, folder / f"{at}", visible, repr(name)[1:40], *OPTIONS)
    whole = {name: torch.tensor([at]) for at, name in enumerate(NAMES)}
    check(backend, whole, folder / "all", *(re.split(r"[\x00-\x1f]", one)[0][:60] for one in NAMES[:-1]))


@pytest.mark.parametrize(
    "name", ["größe 重み", "with\nbreak", "n" * 255, ".hidden", "deep/er/and/deeper", "x.so", "%s"]
)
def test_paths(backend, folder, name):
    path = folder / name[: backend.longest_name]
    for seed in (1, 2):
        backend.save(small(seed), path).result()
        assert plain(backend.load(path)) == plain(small(seed))
    assert backend.listed(path.parent) == [path.name]
    backend.remove(path)
    assert not list(path.parent.iterdir())


# ---- Order


def test_the_order_is_kept(backend, folder):
    path = folder / "a"
    for seed in range(1, 4):
        backend.save(small(seed), path)
    assert plain(backend.load(path)) == plain(small(3))
    backend.save(small(4), path)
    backend.remove(path)
    assert backend.found(path) is None
    backend.save(small(5), path)
    assert plain(backend.load(path)) == plain(small(5))


def test_two_at_once(backend, folder):
    clients = [backend.daemon.client(job=f"job-{at}") for at in range(2)]
    errors = []

    def save_often(client, own):
        try:
            for seed in range(own, own + 3):
                one = client.save(small(seed), folder / f"{own}", backend=backend.subject.name)
                both = client.save(small(seed), folder / "both", backend=backend.subject.name)
                one.result()
                both.result()
        except BaseException as error:  # noqa: BLE001 - the test has it
            errors.append(error)

    owners = [
        threading.Thread(target=save_often, args=(client, own))
        for client, own in zip(clients, (10, 20))
    ]
    for owner in owners:
        owner.start()
    for owner in owners:
        owner.join()
    assert not errors
    for own in (10, 20):
        assert plain(backend.load(folder / f"{own}")) == plain(small(own + 2))
    assert plain(backend.load(folder / "both")) in [plain(small(12)), plain(small(22))]
    assert backend.listed(folder) == ["10", "20", "both"]
    for client in clients:
        client.close()


# ---- What is there already, or is not


def test_what_is_not_there(backend, folder):
    with pytest.raises(FileNotFoundError, match=str(folder)):
        backend.load(folder / "none")
    backend.remove(folder / "none")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_there(backend, folder, kind):
    """A save either takes its place or leaves it, and says so; so does a removal; a load fails."""
    path = folder / "a"

    def put():
        if kind == "file":
            path.write_text("something else")
        else:
            path.mkdir()
            (path / "part").write_text("something else")

    put()
    with pytest.raises(Exception) as caught:
        backend.load(path)
    assert str(path) in str(caught.value) or not isinstance(caught.value, ckptd.CheckpointError)
    error = backend.refusal(small(1), path)
    if error is None:
        assert plain(backend.load(path)) == plain(small(1))
    else:
        assert_explained(error, path)
        there = path if kind == "file" else path / "part"
        assert there.read_text() == "something else"
    assert backend.listed(folder) == ["a"]
    try:
        backend.remove(path)
        assert not list(folder.iterdir())
    except ckptd.CheckpointError as error:
        assert_explained(error, path)


def test_a_folder_that_cannot_be(backend, folder):
    (folder / "file").write_text("")
    error = backend.refusal(small(1), folder / "file" / "a")
    assert error is not None
    assert_explained(error, folder / "file")


def assert_explained(error, path):
    """That it is an error with a reason of the table, and says what it is about."""
    assert isinstance(error, ckptd.CheckpointError), repr(error)
    assert error.reason in REASONS, error.reason
    assert str(path) in str(error)
