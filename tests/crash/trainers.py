"""Starts trainers from a zygote, sees what the daemon makes of their saves, and kills them."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, Optional

import grpc
from harness import REPO, WAIT_SECONDS

from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb

_FOLDERS = [REPO / "client" / "python", REPO / "tests" / "python", REPO / "tests" / "crash"]
# For importing torch and lightning on a machine that has not read them before.
_ANSWER_SECONDS = 300.0


@dataclasses.dataclass
class Config:
    """What one trainer does."""

    address: str
    job: str
    folder: str  # for its checkpoints, and nothing else
    ledger: str  # is appended to
    log: str  # stdout and stderr, appended
    width: int  # its checkpoints have about 8 * width**2 bytes
    transport: str
    max_steps: int
    save: bool = True


class Zygote:
    """One trainer at a time, each a fork of one process: see trainer_zygote.py."""

    def __init__(self) -> None:
        self._trainer: Optional[int] = None
        # A library that makes threads when it is imported would lose them in the fork.
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("trainer_zygote.py"))],
            env={
                **os.environ,
                **one_thread,
                "PYTHONPATH": os.pathsep.join(map(str, _FOLDERS)),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it has imported all

    def start(self, config: Config) -> int:
        """Forks a trainer; returns its process id, which is its own until it is reaped."""
        self._trainer = self._ask(f"start {json.dumps(dataclasses.asdict(config))}")
        return self._trainer

    def wait(self) -> None:
        """Returns when the trainer has ended. Its process id is still its own."""
        self._ask("wait")

    def reap(self) -> int:
        """Waits until the trainer ends; returns its exit code, negative for a signal."""
        code = self._ask("reap")
        self._trainer = None
        return code

    def close(self) -> None:
        """Ends it, and the trainer that a failed test has left."""
        if self._trainer is not None:
            os.kill(self._trainer, signal.SIGKILL)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(WAIT_SECONDS)

    def _ask(self, order: str) -> int:
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        watchdog = threading.Timer(_ANSWER_SECONDS, self._process.kill)
        watchdog.start()
        try:
            answer = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert answer, f"the zygote ended with code {self._process.wait(WAIT_SECONDS)}"
        return int(answer)


@dataclasses.dataclass
class Moment:
    """When a trainer is to die: `delay` after its `count`-th save came to `state`."""

    delay: float  # seconds
    state: Optional[int] = None  # pb.Save.State; None: after the start of the trainer
    count: int = 0


class Killer:
    """Kills one trainer, once, at its moment."""

    def __init__(self, pid: int, moment: Moment) -> None:
        self._pid = pid
        self._moment = moment
        self._lock = threading.Lock()
        self._timer = threading.Timer(moment.delay, self._kill)
        self._started = False
        self.killed_at_ns: Optional[int] = None  # since the epoch, as the daemon's times
        if moment.state is None:
            self.strike()

    def see(self, state: int, count: int) -> None:
        """Is told of the `count`-th change to `state`."""
        if state == self._moment.state and count >= self._moment.count:
            self.strike()

    def strike(self) -> None:
        """Its moment has come, but for the delay."""
        with self._lock:
            if self._started:
                return
            self._started = True
            if self._moment.delay == 0:  # without the time that a thread takes to start
                self._kill()
            else:
                self._timer.start()

    def close(self) -> None:
        """Kills nobody from now on."""
        with self._lock:
            self._started = True
            self._timer.cancel()
            if self._timer.is_alive():
                self._timer.join()

    def _kill(self) -> None:
        self.killed_at_ns = time.time_ns()
        os.kill(self._pid, signal.SIGKILL)


class SaveWatch:
    """Follows all saves of a daemon by one stream."""

    def __init__(self, address: str) -> None:
        self._lock = threading.Lock()
        self._states: Dict[str, int] = {}
        self._seen: Dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self._killers: Dict[str, Killer] = {}
        self._channel = rpc.open_channel(address)
        self._stream = rpc.Stub(self._channel).WatchSaves(pb.WatchSavesRequest())
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def tell(self, job: str, killer: Optional[Killer]) -> None:
        """Tells `killer` of the changes of a job, those before this call included; None: nobody."""
        with self._lock:
            self._killers = {} if killer is None else {job: killer}
            for state, count in self._seen[job].items():
                self._tell(job, state, count)

    def close(self) -> None:
        """Ends the stream."""
        self._stream.cancel()
        self._thread.join(WAIT_SECONDS)
        self._channel.close()

    def _follow(self) -> None:
        try:
            for save in self._stream:
                with self._lock:
                    before = self._states.get(save.name)
                    self._states[save.name] = save.state
                    if before != save.state:
                        job = save.name.split("/")[1]
                        self._seen[job][save.state] += 1
                        self._tell(job, save.state, self._seen[job][save.state])
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                raise

    def _tell(self, job: str, state: int, count: int) -> None:
        if job in self._killers:
            self._killers[job].see(state, count)
