"""When save returns the snapshot is complete: other threads may change all that was saved.

CKPTD_ISOLATION_ROUNDS   how many saves; 1000 if unset
CKPTD_SEED               of what is saved; fixed if unset
"""

from __future__ import annotations

import collections
import copy
import os
import random
import sys
import threading

import numpy as np
import pytest
import torch
from harness import WAIT_SECONDS
from pieces import Plain, bytes_that_differ

from ckptd import copier

ROUNDS = int(os.environ.get("CKPTD_ISOLATION_ROUNDS", "1000"))
SEED = int(os.environ.get("CKPTD_SEED", "20261124"))
#: One in so many states is large, so that a copy which goes on after the return is caught.
LARGE_ONE_IN = 20
LARGE_BYTES = 32 << 20
#: Saves whose files are looked at later, when the images of the first have been used again.
PENDING = 8


def make_state(choice: random.Random, size: int):
    """An object of about `size` bytes with everything in it that can be changed in place."""
    generator = torch.Generator().manual_seed(choice.getrandbits(62))
    numbers = max(64, size // 4 // 8)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base, square = some(2 * numbers), some(8, numbers)
    custom = Plain()
    custom.tensor = some(numbers)
    custom.array = np.random.default_rng(choice.getrandbits(62)).integers(0, 99, numbers)
    custom.notes = ["as it was", {"depth": choice.random()}]
    parameter = torch.nn.Parameter(some(numbers))
    return {
        "contiguous": some(numbers),
        "views": [base, base[3:-5], base[::2], base.view(2, -1).t()],
        "not contiguous": square.t()[1:],
        "bfloat16": some(numbers).to(torch.bfloat16),
        "scalar": some(1)[0].clone(),
        "bool": some(numbers) > 0,
        "parameter": parameter,
        "storage": some(numbers).untyped_storage(),
        "array": custom.array.astype(np.float32).reshape(8, -1),
        "strided array": custom.array[::3],
        "fortran array": np.asfortranarray(custom.array.reshape(8, -1)),
        "structured": np.zeros(5, dtype=[("a", "i4"), ("b", "f8")]),
        "custom": custom,
        "nested": {"list": [1, [2, {"three": 3.0}], (4, [5])], "set": {1, 2}, "none": None},
        "deque": collections.deque([1, [2]]),
        "ordered": collections.OrderedDict(x=1, y=[some(3)]),
        "bytes": bytearray(choice.randbytes(100)),
        "last": some(numbers),
    }


def change_all(obj) -> None:
    """Changes in place all that can be changed, to the bottom. Often is as good as once."""
    if isinstance(obj, torch.Tensor):
        change_all(obj.detach().untyped_storage())
    elif isinstance(obj, torch.UntypedStorage):
        torch.empty(0, dtype=torch.uint8).set_(obj).add_(1)
    elif isinstance(obj, np.ndarray):
        for field in obj.dtype.names or [...]:
            obj[field] += 1
    elif isinstance(obj, dict):
        parts = list(obj.values())
        obj.clear()
        obj["changed"] = True
        change_each(parts)
    elif isinstance(obj, (list, collections.deque)):
        parts = list(obj)
        obj.clear()
        obj.append("changed")
        change_each(parts)
    elif isinstance(obj, tuple):
        change_each(obj)
    elif isinstance(obj, set):
        obj.add("changed")
    elif isinstance(obj, bytearray):
        obj[:] = bytes(len(obj))
    elif isinstance(obj, Plain):
        change_all(vars(obj))


def change_each(parts) -> None:
    """Changes what was in a container that is empty now."""
    for part in parts:
        change_all(part)


class Meddlers:
    """Threads that are there before a save, and change its object the moment it returns.

    Each has a part of its own, so that all are at it at once. One more never rests: it changes
    and frees objects of its own, in whose memory others may come to lie.
    """

    COUNT = 3

    def __init__(self) -> None:
        self._go = [threading.Semaphore(0) for _ in range(self.COUNT)]
        self._done = threading.Semaphore(0)
        self._parts: list = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._wait_and_change, args=(index,))
            for index in range(self.COUNT)
        ]
        self._threads.append(threading.Thread(target=self._never_rest))
        for thread in self._threads:
            thread.start()

    def arm(self, obj: dict) -> None:
        """Shows them what to change: every part of `obj`, and `obj` itself."""
        parts = [*obj.values(), obj]
        self._parts = [parts[index :: self.COUNT] for index in range(self.COUNT)]

    def go(self) -> None:
        """Has it changed."""
        for semaphore in self._go:
            semaphore.release()

    def wait(self) -> None:
        """Returns when all is changed."""
        for _ in range(self.COUNT):
            assert self._done.acquire(timeout=WAIT_SECONDS)
        self._parts = []

    def close(self) -> None:
        """Ends them."""
        self._stop.set()
        self.go()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def _wait_and_change(self, index: int) -> None:
        while True:
            self._go[index].acquire()
            if self._stop.is_set():
                return
            try:
                change_each(self._parts[index])
            finally:
                self._done.release()

    def _never_rest(self) -> None:
        choice = random.Random(SEED)
        while not self._stop.wait(0.002):
            change_all(make_state(choice, 1 << choice.randint(10, 18)))


@pytest.fixture
def meddlers():
    """Threads that get their turn as soon as they are due, not when Python's interval is over."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    meddlers = Meddlers()
    yield meddlers
    meddlers.close()
    sys.setswitchinterval(interval)


@pytest.fixture
def clients(make_daemon):
    """A client for each transport."""
    daemon = make_daemon("--staging-budget", "512MiB")
    clients = [daemon.client(transport=transport) for transport in ("shm", "grpc")]
    yield clients
    for client in clients:
        client.close()


def save_and_change(client, path, state, meddlers):
    """Saves; all is changed from the moment of the return, by others and by this thread."""
    own = [state["last"], state["contiguous"]]
    meddlers.arm(state)
    save = client.save(state, path)
    meddlers.go()
    change_each(own)
    meddlers.wait()
    return save


def test_nothing_that_changes_after_the_return_is_saved(clients, meddlers, tmp_path):
    print(f"CKPTD_SEED={SEED}")
    choice = random.Random(SEED)
    pending: collections.deque = collections.deque()

    def check(index, save, path, expected):
        save.result()
        differ = bytes_that_differ(expected, torch.load(path, weights_only=False))
        assert differ == 0, f"round {index}, {save}: {differ} bytes differ"

    for index in range(ROUNDS):
        large = choice.randrange(LARGE_ONE_IN) == 0
        size = LARGE_BYTES if large else 1 << choice.randint(12, 19)
        state = make_state(choice, size)
        expected = copy.deepcopy(state)
        own = state["contiguous"]
        path = tmp_path / f"{index % (2 * PENDING)}.ckpt"
        save = save_and_change(clients[index % len(clients)], path, state, meddlers)
        assert bytes_that_differ(expected["contiguous"], own) == own.nbytes, "they did not meddle"
        assert state == {"changed": True}
        pending.append((index, save, path, expected))
        if len(pending) > PENDING:
            check(*pending.popleft())
    for each in pending:
        check(*each)


def test_a_copy_that_goes_on_after_the_return_would_be_seen(
    clients, meddlers, tmp_path, monkeypatch
):
    late, alive = [], []
    monkeypatch.setattr(copier.Copier, "run", lambda self, tasks: late.extend(tasks))
    copy_now = copier.Copier.copy

    def copy_later(self, captured, *arguments):
        alive.append(captured)
        copy_now(self, captured, *arguments)

    monkeypatch.setattr(copier.Copier, "copy", copy_later)
    state = make_state(random.Random(SEED), LARGE_BYTES)
    expected = copy.deepcopy(state)
    save = save_and_change(clients[0], tmp_path / "a.ckpt", state, meddlers)
    for task in late:
        task()
    save.result()
    assert bytes_that_differ(expected, torch.load(tmp_path / "a.ckpt", weights_only=False)) > 0
