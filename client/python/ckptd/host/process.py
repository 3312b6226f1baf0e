"""The supervisor's side of a worker."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Callable, List, Optional

from ..relay_process import read_frame, write_frame

# Kinds of frames: the payload, a task with its image, the status that answers it.
PAYLOAD, TASK, STATUS = b"p", b"t", b"s"
_END_SECONDS = 10.0
# Of output without an end of line.
_MAX_LINE_BYTES = 64 << 10


def interpreter_flags() -> List[str]:
    """The flags of this interpreter, for another one."""
    flags: List[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


class Worker:
    """A process that runs worker.py; to be made by the main thread: it dies with that.

    says: called, by another thread, with the worker and the status of a task, or None when it is
          dead.
    log:  called, by other threads, with what it prints.
    """

    def __init__(
        self,
        payload: bytes,
        says: Callable[["Worker", Optional[bytes]], None],
        log: Callable[[str], None],
    ) -> None:
        self.label = pickle.loads(payload)["label"]
        ours, theirs = socket.socketpair()
        program = str(Path(__file__).with_name("worker.py"))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *interpreter_flags(), program, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                # What it starts ends with it.
                start_new_session=True,
            )
        self._socket = ours
        self._outputs = []
        for output in (self._process.stdout, self._process.stderr):
            thread = threading.Thread(target=_forward, args=(output, log), daemon=True)
            thread.start()
            self._outputs.append(thread)
        threading.Thread(target=self._listen, args=(says,), daemon=True).start()
        self._send(PAYLOAD, payload)

    def give(self, task: bytes, image: str) -> bool:
        """Hands over a task; False if the worker is dead."""
        return self._send(TASK, pickle.dumps((task, image)))

    def ended(self) -> bool:
        """Whether the process is dead."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Waits for the end; says how it was."""
        self.kill()
        code = self._process.returncode
        if code is not None and code < 0:
            try:
                name = f" ({signal.Signals(-code).name})"
            except ValueError:
                name = ""
            return f"was killed by signal {-code}{name}"
        return f"ended with exit code {code} (os._exit or sys.exit in it?)"

    def kill(self) -> None:
        """Ends the process and what it has started, now."""
        # One that ends by itself gets the time to: by how it ended, others say what happened.
        try:
            self._process.wait(0.5 if self._is_closed() else 0)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Has the process end in its own way, or else kills it."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._process.wait(_END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def _is_closed(self) -> bool:
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send(self, kind: bytes, data: bytes) -> bool:
        try:
            write_frame(self._socket, kind, data)
            return True
        except OSError:
            return False

    def _listen(self, says: Callable[["Worker", Optional[bytes]], None]) -> None:
        try:
            for _, status in iter(lambda: read_frame(self._socket), None):
                says(self, status)
        except OSError:
            pass
        says(self, None)

    def _close(self) -> None:
        for thread in self._outputs:  # what it has printed is told before its end
            thread.join(_END_SECONDS)
        self._socket.close()


def _forward(output: Optional[IO[bytes]], log: Callable[[str], None]) -> None:
    assert output is not None
    with output:
        for line in iter(lambda: output.readline(_MAX_LINE_BYTES), b""):
            log(line.decode("utf-8", "replace").rstrip("\r\n"))
