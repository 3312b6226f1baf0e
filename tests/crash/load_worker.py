"""One process of the load under which daemons are killed: saves, loads and removes until told not to.

usage: load_worker.py CONFIG, a LoadConfig as JSON

stdin    stdout
         ready, when each client has reached the daemon
rest     resting, when no call is under way
go       going
EOF      ends it, when what is under way is done

Each of its threads has a client, a job and paths of its own, so it knows what a load must give; to
one path all processes save. What a thread asks for it writes down before, and after the answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from daemon_kills import LoadConfig
from ledger import Ledger
from pieces import digest

import ckptd

_PATHS = 3
_SMALL, _LARGE = (16, 20_000), (200_000, 1_200_000)  # numbers of 4 bytes
_LARGE_SHARE = 0.25
_AWAITED_SHARE = 0.1
_OPERATIONS = {"save": 0.55, "save to the common path": 0.1, "load": 0.2, "remove": 0.15}
_TIMEOUT = 120.0


class Gate:
    """Threads pass by it between two calls, and wait at it while it is closed."""

    def __init__(self, threads: int) -> None:
        self._condition = threading.Condition()
        self._threads = threads
        self._waiting = 0
        self._open = True
        self.ended = False

    def pass_by(self) -> bool:
        """Returns when it is open; False if there is to be an end."""
        with self._condition:
            self._waiting += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._open or self.ended)
            self._waiting -= 1
            return not self.ended

    def close(self) -> None:
        """Returns when all threads wait at it."""
        with self._condition:
            self._open = False
            self._condition.wait_for(lambda: self._waiting == self._threads)

    def open(self) -> None:
        """Lets them go on."""
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def end(self) -> None:
        """Lets them go on to their end."""
        with self._condition:
            self.ended = True
            self._condition.notify_all()


class Worker:
    """What one thread does."""

    def __init__(self, config: LoadConfig, number: int, ledger: Ledger) -> None:
        name = f"{config.name}-{number}"
        self._random = random.Random(f"{config.seed}-{name}")
        self._ledger = ledger
        self._client = ckptd.Client(
            address=config.address,
            job=name,
            on_unavailable="raise",
            timeout=_TIMEOUT,
            transport=config.transports[number],
        )
        folder = Path(config.folder)
        self._paths = [str(folder / f"{name}-{index}.ckpt") for index in range(_PATHS)]
        self._common = config.common
        self._now: Dict[str, Optional[str]] = dict.fromkeys(self._paths)
        self._client.flush()  # connects

    def work(self, gate: Gate) -> None:
        """Goes on until the gate says that there is to be an end."""
        while gate.pass_by():
            (operation,) = self._random.choices(
                list(_OPERATIONS), weights=list(_OPERATIONS.values())
            )
            path = self._random.choice(self._paths)
            if operation == "save":
                self._now[path] = self._save(path)
            elif operation == "load":
                self._load(path)
            elif operation == "remove":
                self._ledger.note("remove", path=path)
                self._client.remove(path, wait=self._random.random() < 0.5)
                self._ledger.note("removed", path=path)
                self._now[path] = None
            else:
                self._save(self._common)

    def _save(self, path: str) -> str:
        sizes = _LARGE if self._random.random() < _LARGE_SHARE else _SMALL
        generator = torch.Generator().manual_seed(self._random.getrandbits(62))
        state = {"weight": torch.randn(self._random.randint(*sizes), generator=generator)}
        expected = digest(state)
        self._ledger.note("save", path=path, digest=expected)
        visible = self._random.choice(["when_durable", "at_return"])
        save = self._client.save(state, path, visible=visible)
        self._ledger.note("saved", path=path, digest=expected, name=save.name)
        if self._random.random() < _AWAITED_SHARE:
            save.result()
            self._ledger.note("awaited", path=path)
        return expected

    def _load(self, path: str) -> None:
        try:
            found: Optional[str] = digest(self._client.load(path))
        except FileNotFoundError:
            found = None
        expected = self._now[path]
        assert found == expected, f"{path}: loaded {found}, and the last accepted is {expected}"
        self._ledger.note("loaded", path=path)


def _run(worker: Worker, gate: Gate) -> None:
    try:
        worker.work(gate)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    config = LoadConfig(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    ledger = Ledger(config.ledger)
    gate = Gate(len(config.transports))
    workers = [Worker(config, number, ledger) for number in range(len(config.transports))]
    threads = [threading.Thread(target=_run, args=(worker, gate)) for worker in workers]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        order: Any = {"rest": gate.close, "go": gate.open}[line.strip()]
        order()
        print({"rest": "resting", "go": "going"}[line.strip()], flush=True)
    gate.end()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
