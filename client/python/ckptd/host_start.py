"""Host processes that the daemon cannot start, as in another container: this process does, and sees
to it that they run as long as it does.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Dict, Tuple

from . import names
from .v1 import checkpoint_pb2 as pb

_log = logging.getLogger("ckptd")

# Before a process is started again that was killed. Twice as long each time, up to the longest, as
# long as none of them lives for longer than that.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0

_lock = threading.Lock()
_kept: Dict[Tuple[str, str], _Kept] = {}  # by address and host


def keep(host: str, spec: pb.HostSpec, address: str, registered: bool) -> None:
    """Starts the host's process unless it runs; it outlives this one. It is started again when it is
    killed, and not when it ends by itself: it does so when the daemon does not need it, or is gone.

    registered: the daemon has been told of the host just now. A process which is about to end, as
    nobody needed it before, is followed by another.

    Raises OSError.
    """
    with _lock:
        kept = _kept.get((address, host))
        if kept is None:
            _kept[address, host] = _Kept(host, spec, address)
        elif registered:
            kept.needed_again = True


class _Kept:
    """A process that a thread waits for. `needed_again` is its to read and write under _lock."""

    def __init__(self, host: str, spec: pb.HostSpec, address: str) -> None:
        self.needed_again = False
        self._host = host
        self._spec = spec
        self._address = address
        self._process = self._start()
        threading.Thread(target=self._keep, name="ckptd-host", daemon=True).start()

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            killed = code < 0
            if killed:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            with _lock:
                if not (killed or self.needed_again) or not self._start_again():
                    del _kept[self._address, self._host]
                    return

    def _start_again(self) -> bool:
        self.needed_again = False
        try:
            self._process = self._start()
        except OSError as error:
            _log.error("host process of %s: cannot be started again: %s", self._spec.label, error)
            return False
        return True

    def _start(self) -> "subprocess.Popen[bytes]":
        # What it prints goes to a log beside the daemon's socket: whoever reads this process's output
        # must see the end of it.
        path = names.socket_path(self._address)
        try:
            log = open(Path(path).with_name("ckptd-host.log") if path else os.devnull, "ab")
        except OSError:
            log = open(os.devnull, "ab")
        with log:
            return subprocess.Popen(
                list(self._spec.argv),
                cwd=self._spec.directory,
                env={
                    **dict(self._spec.environment),
                    "CKPTD_HOST_ID": self._host,
                    "CKPTD_ADDRESS": self._address,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
