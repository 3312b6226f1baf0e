"""One process of the soak's load.

usage: soak_worker.py CONFIG, a WorkerConfig as JSON

stdin    stdout
         ready
ORDER    does what an Order, as JSON, says; half, when half of the saves are made; then what was
         done, as JSON: names and counts
EOF      ends it

Roles:
  stay    a client for each transport, which lives as long as the process
  visit   clients that open a session, save, load, remove, and close it, one after the other
  fork    the same in a process each; every second one is killed while it saves

A state knows its number, and its weights follow from that: so whoever loads one can tell whether it
is whole, and whether it is the one that was saved last.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Optional

import torch
from harness import wait_until

import ckptd
from ckptd.errors import DaemonUnavailableError

_TIMEOUT = 120.0
_PATHS = 3
_LOAD_SHARE, _REMOVE_SHARE = 0.15, 0.08
#: Saves of one thread that nobody has waited for yet.
_IN_FLIGHT = 3
#: A forked client saves until it is killed, but not for ever.
_ENDLESS = 10_000


@dataclasses.dataclass
class WorkerConfig:
    """What a process of the load is."""

    role: str
    address: str
    folder: str  # for its checkpoints
    seed: int


@dataclasses.dataclass
class Order:
    """What one batch of work is."""

    saves: int
    elements: int  # of a state, at most; 4 bytes each
    spread: bool  # whether states are of different sizes


def make_state(number: int, elements: int) -> Dict[str, Any]:
    """The state of that number."""
    return {"number": number, "weight": torch.arange(elements, dtype=torch.int32) + number}


def check_whole(state: Dict[str, Any]) -> int:
    """Fails unless `state` is as it was made; returns its number."""
    weight = state["weight"]
    assert torch.equal(weight, make_state(state["number"], len(weight))["weight"])
    return state["number"]


class Work:
    """Saves, loads and removes through one client, on paths of its own. For one thread."""

    def __init__(self, config: WorkerConfig, name: str, paths: int, **client: Any) -> None:
        self.done: Dict[str, int] = collections.Counter()
        self.client = ckptd.Client(
            address=config.address, job=name, on_unavailable="raise", timeout=_TIMEOUT, **client
        )
        self._random = random.Random(f"{config.seed}-{name}")
        self._now: Dict[str, Optional[int]] = {
            str(Path(config.folder) / f"{name}-{index}.ckpt"): None for index in range(paths)
        }
        self._pending: Deque[ckptd.Save] = collections.deque()
        wait_until(self._arrives, "the daemon to be back")

    def run(self, order: Order, saved: Callable[[], None] = lambda: None) -> None:
        """Makes the saves of an order, and sees that each ends well and each path is as it must be.

        saved: told each save.
        """
        for _ in range(order.saves):
            self.save(order)
            saved()
            if self._random.random() < _LOAD_SHARE:
                self.load(self._path())
            if self._random.random() < _REMOVE_SHARE:
                self.remove(self._path(), wait=self._random.random() < 0.5)
        self.settle()
        for path in self._now:
            self.load(path)

    def save(self, order: Order) -> None:
        """Saves the next state."""
        path = self._path()
        elements = order.elements
        if order.spread:
            elements = self._random.randint(elements // 64, elements)
        number = self._now[path] = self._random.getrandbits(20)
        self._pending.append(self.client.save(make_state(number, elements), path))
        self.done["saved"] += 1
        if len(self._pending) > _IN_FLIGHT:
            self._await_one()

    def settle(self) -> None:
        """Waits until all its saves and removals have ended."""
        while self._pending:
            self._await_one()
        self.client.flush()

    def load(self, path: str) -> None:
        """Loads what is at `path`, which must be what was saved there last."""
        try:
            found: Optional[int] = check_whole(self.client.load(path))
        except FileNotFoundError:
            found = None
        assert found == self._now[path], f"{path}: is {found}, not {self._now[path]}"
        self.done["loaded"] += 1

    def remove(self, path: str, wait: bool) -> None:
        """Removes what is at `path`."""
        self.client.remove(path, wait=wait)
        self._now[path] = None
        self.done["removed"] += 1

    def remove_all(self) -> None:
        """Removes all that is at its paths."""
        for path in self._now:
            self.remove(path, wait=True)

    def _path(self) -> str:
        return self._random.choice(list(self._now))

    def _await_one(self) -> None:
        save = self._pending.popleft()
        error = save.exception()
        if error is not None and error.reason == "SUPERSEDED":
            self.done["superseded"] += 1
        elif error is not None:
            raise error
        else:
            self.done["durable"] += 1

    def _arrives(self) -> bool:
        try:
            for path in self._now:
                self.client.remove(path)
        except DaemonUnavailableError:  # it was killed just now
            return False
        return True


class Half:
    """Says "half" when half of the saves are made."""

    def __init__(self, saves: int) -> None:
        self._lock = threading.Lock()
        self._left = max(1, saves // 2)

    def count(self) -> None:
        """Counts one."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                print("half", flush=True)


class Stay:
    """Clients that stay, one thread each."""

    def __init__(self, config: WorkerConfig) -> None:
        self._works = [
            Work(config, "stay-shm", _PATHS, transport="shm"),
            Work(config, "stay-grpc", _PATHS, transport="grpc"),
            Work(config, "stay-new", 1, transport="shm", on_full="supersede"),
        ]

    def run(self, order: Order) -> List[Dict[str, int]]:
        """Makes the saves of an order in turns."""
        half = Half(order.saves)
        share, rest = divmod(order.saves, len(self._works))
        threads = []
        for index, work in enumerate(self._works):
            part = dataclasses.replace(order, saves=share + (index < rest))
            threads.append(threading.Thread(target=_or_die, args=(work.run, part, half.count)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return [work.done for work in self._works]


class Visitors:
    """Clients that come and go, one for each save of an order; `_visit` has one do so."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._visits = 0
        self._done: Dict[str, int] = collections.Counter()

    def run(self, order: Order) -> List[Dict[str, int]]:
        """Makes the visits."""
        half = Half(order.saves)
        for _ in range(order.saves):
            self._visits += 1
            self._visit(order, half)
        return [self._done]


class Visit(Visitors):
    """All in one process, each with a session and a job of its own."""

    def _visit(self, order: Order, half: Half) -> None:
        transport = ("shm", "grpc")[self._visits % 2]
        work = Work(self._config, f"visit-{self._visits}", 1, transport=transport)
        work.run(dataclasses.replace(order, saves=1), half.count)
        work.remove_all()
        work.client.close()
        self._done.update(work.done)


class Fork(Visitors):
    """A process each. This one uses no gRPC itself, so that they can be forked."""

    def _visit(self, order: Order, half: Half) -> None:
        killed = self._visits % 2 == 1
        accepted, accepts = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(accepted)
            _or_die(self._save, order, accepts, killed)
            os._exit(0)
        os.close(accepts)
        with open(accepted, "rb") as pipe:
            assert pipe.read(1) == b"a", "it has ended before it saved"
        if killed:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == (-signal.SIGKILL if killed else 0)
        self._done["killed" if killed else "left"] += 1
        half.count()

    def _save(self, order: Order, accepts: int, killed: bool) -> None:
        # All those that are killed have one path, so that disk use is bounded.
        name = "fork-killed" if killed else f"fork-{self._visits}"
        work = Work(self._config, name, 1)
        work.save(order)
        os.write(accepts, b"a")
        for _ in range(_ENDLESS if killed else 1):
            work.save(order)
        work.settle()
        work.remove_all()
        work.client.close()


def _or_die(function: Callable[..., None], *arguments: Any) -> None:
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    config = WorkerConfig(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    worker = {"stay": Stay, "visit": Visit, "fork": Fork}[config.role](config)
    print("ready", flush=True)
    for line in sys.stdin:
        done = worker.run(Order(**json.loads(line)))
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
