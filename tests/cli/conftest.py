"""Runs ckptctl, beside the daemons of the Python tests."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb
from harness import CKPTCTL, WAIT_SECONDS

WAIT = WAIT_SECONDS


class Trainer:
    """Saves by raw calls, and can keep a path from being written to."""

    def __init__(self, address: str) -> None:
        self._channel = rpc.open_channel(address)
        self.stub = rpc.Stub(self._channel)
        self._events = self.stub.OpenSession(pb.OpenSessionRequest(client="host:1 trainer"))
        self.session = next(self._events).session_id

    def save(self, name: str, path: Path, data: bytes = b"pickle") -> str:
        """Has a save accepted and returns its name."""
        begin = pb.BeginSaveRequest(
            session_id=self.session,
            name=name,
            path=str(path),
            backend="torch",
            object_bytes=len(data),
        )
        offset = self.stub.BeginSave(begin, timeout=WAIT).object_offset
        write = pb.WriteSaveRequest(name=name, offset=offset, data=data)
        self.stub.WriteSave(iter([write]), timeout=WAIT)
        self.stub.CommitSave(pb.CommitSaveRequest(name=name), timeout=WAIT)
        return name

    def wait(self, name: str) -> None:
        """Returns when a save has ended."""
        for _ in self.stub.WatchSaves(pb.WatchSavesRequest(name=name), timeout=WAIT):
            pass

    def hold(self, path: Path) -> str:
        """Keeps what is saved to `path`, where a file is, QUEUED; for `release`."""
        request = pb.BeginLoadRequest(session_id=self.session, path=str(path))
        return self.stub.BeginLoad(request, timeout=WAIT).load_id

    def release(self, load_id: str) -> None:
        """Lets it go on."""
        self.stub.EndLoad(pb.EndLoadRequest(load_id=load_id), timeout=WAIT)

    def close(self) -> None:
        """Ends the session."""
        self._events.cancel()
        self._channel.close()


@pytest.fixture
def daemon(make_daemon):
    """A daemon that knows no saves yet."""
    return make_daemon("--staging-budget", "64MiB")


@pytest.fixture
def trainer(daemon):
    """A session with that daemon."""
    trainer = Trainer(daemon.address)
    yield trainer
    trainer.close()


@pytest.fixture
def ckptctl(daemon):
    """Runs ckptctl to its end."""

    def run(*arguments, address=None, stdout=subprocess.PIPE) -> subprocess.CompletedProcess:
        return subprocess.run(
            [CKPTCTL, *map(str, arguments)],
            env={**os.environ, "CKPTD_ADDRESS": address or daemon.address},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WAIT,
        )

    return run


class Running:
    """A ckptctl that goes on, and what it has printed so far."""

    def __init__(self, address: str, *arguments, stdout=subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [CKPTCTL, *map(str, arguments)],
            env={**os.environ, "CKPTD_ADDRESS": address, "TERM": "xterm"},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._timer = threading.Timer(WAIT, self.process.kill)
        self._timer.start()

    def read_until(self, text: str) -> str:
        """Lines up to the first with `text`, which must come."""
        lines = ""
        for line in self.process.stdout:
            lines += line
            if text in line:
                return lines
        raise AssertionError(f"no {text!r} in {lines!r}; {self.process.stderr.read()!r}")

    def end(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(WAIT)
        finally:
            self._timer.cancel()


@pytest.fixture
def start_ckptctl(daemon):
    """Starts ckptctl."""
    started = []

    def start(*arguments, **options) -> Running:
        started.append(Running(daemon.address, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.end()
