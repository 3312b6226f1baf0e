"""Real daemons of a test's own, and the package in the source tree."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "client" / "python"))

import grpc  # noqa: E402

import ckptd  # noqa: E402 - from the source tree
from ckptd import rpc  # noqa: E402
from ckptd.v1 import checkpoint_pb2 as pb  # noqa: E402

BUILD = Path(os.environ.get("CKPTD_BUILD_DIR", REPO / "build"))
CKPTCTL = BUILD / "bin" / "ckptctl"
WAIT_SECONDS = 20.0


def wait_until(condition, what: str, seconds: float = WAIT_SECONDS):
    """Polls until `condition()` is truthy and returns that; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s: {what}"
        time.sleep(0.005)


class Daemon:
    """A ckptd of the test's own: its socket, its pool.

    wrapper: a command that is given the daemon's and becomes it.
    """

    def __init__(self, folder: Path, *flags: str, wrapper: Sequence[Any] = ()) -> None:
        self.socket = folder / "run" / "ckptd.sock"
        self.address = f"unix:{self.socket}"
        self.log = folder / "daemon.log"
        self.pool = Path(tempfile.mkdtemp(prefix="ckptd-test-", dir="/dev/shm")) / "pool"
        self.state = folder / "state"
        self.flags = flags
        self.wrapper = wrapper
        self.socket.parent.mkdir(mode=0o700, exist_ok=True)
        self.start()

    def start(self, **environment: str) -> None:
        """Starts it, with these variables too, and waits until it serves."""
        self.launch(**environment)
        wait_until(self._answers, f"the daemon to serve; see {self.log}")

    def launch(self, **environment: str) -> None:
        """Starts it."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, BUILD / "bin" / "ckptd", "--socket", self.socket]
                + ["--pool-dir", self.pool, *self.flags],
                # What the flags may say otherwise.
                env={
                    **os.environ,
                    "CKPTD_STATE_DIR": str(self.state),
                    # An error of the storage is soon the end of a save.
                    "CKPTD_RETRY_TIMEOUT": "100ms",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        """Ends it if it runs, and removes its pool."""
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.pool.parent)

    def stop(self) -> int:
        """Ends it as a supervisor would; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)

    def client(self, **arguments) -> ckptd.Client:
        """A client of it that starts no other."""
        return ckptd.Client(**{"address": self.address, "on_unavailable": "raise", **arguments})

    def call(self, method: str, request):
        """One raw call."""
        with rpc.open_channel(self.address) as channel:
            return getattr(rpc.Stub(channel), method)(request, timeout=WAIT_SECONDS)

    def status(self) -> pb.GetStatusResponse:
        """What GetStatus says."""
        return self.call("GetStatus", pb.GetStatusRequest())

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        try:
            with rpc.open_channel(self.address) as channel:
                return rpc.is_serving(channel, WAIT_SECONDS)
        except grpc.RpcError:  # it ends just now
            return False
