"""Host processes that the daemon cannot start, as in another container: this process does, and sees
to it that they run as long as it does.

Processes that share a host, as ranks with the same environment do, start one: its log is locked, for
that host, as long as it runs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Dict, Iterator, Optional, Set, Tuple

from . import names
from .v1 import checkpoint_pb2 as pb

_log = logging.getLogger("ckptd")

# Before a process is started again that was killed. Twice as long each time, up to the longest, as
# long as none of them lives for longer than that.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0

_lock = threading.Lock()
_kept: Dict[Tuple[str, str], _Kept] = {}  # by address and host
_logs: Set[IO[bytes]] = set()  # that are open here


def keep(host: str, spec: pb.HostSpec, address: str, registered: bool) -> None:
    """Starts the host's process unless it runs, here or as another process's; it outlives this one.
    It is started again when it is killed, and not when it ends by itself: it does so when the daemon
    does not need it, or is gone. When another process's has ended, one is started here.

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
    """A process that a thread waits for; None as long as another process's runs. `needed_again` is
    its to read and write under _lock.
    """

    def __init__(self, host: str, spec: pb.HostSpec, address: str) -> None:
        self.needed_again = False
        self._host = host
        self._spec = spec
        self._address = address
        self._process: Optional["subprocess.Popen[bytes]"] = None
        with _locked_log(address, host, wait=False) as log:
            if log is not None:
                self._start(log)
        threading.Thread(target=self._keep, name="ckptd-host", daemon=True).start()

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._process is not None or self._start_again():
            assert self._process is not None
            started = time.monotonic()
            killed = self._process.wait() < 0
            if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            if killed:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            with _lock:
                self._process = None
                if not (killed or self.needed_again):
                    del _kept[self._address, self._host]
                    return

    def _start_again(self) -> bool:
        """Starts it when no other process's runs; False, and forgotten, if it cannot be started."""
        with _locked_log(self._address, self._host, wait=True) as log, _lock:
            assert log is not None
            self.needed_again = False
            try:
                self._start(log)
                return True
            except OSError as error:
                _log.error("host process of %s: cannot be started: %s", self._spec.label, error)
                del _kept[self._address, self._host]
                return False

    def _start(self, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
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


@contextmanager
def _locked_log(address: str, host: str, wait: bool) -> Iterator[Optional[IO[bytes]]]:
    """The log for what the host prints, locked for this host: also in a child, as long as that has it.

    None if it is locked already, unless `wait` is set.
    """
    # It lies beside the daemon's socket: whoever reads this process's output must see the end of it.
    path = names.socket_path(address)
    try:
        log = open(Path(path).with_name("ckptd-host.log") if path else os.devnull, "ab")
    except OSError:
        log = open(os.devnull, "ab")
    with log:
        _logs.add(log)
        try:
            yield log if _lock_log(log, f"{address} {host}", wait) else None
        finally:
            _logs.discard(log)


def _lock_log(log: IO[bytes], name: str, wait: bool) -> bool:
    # A byte of it: a file for each host would be left behind, as a host outlives who has started it.
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
    try:
        if log.name != os.devnull:
            fcntl.fcntl(log, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, flock)
    except OSError as error:
        # Where there are no such locks, each process starts one, and all but one of those end.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _kept.clear()
    for log in _logs:  # a lock would last as long as this process
        log.close()
    _logs.clear()


os.register_at_fork(after_in_child=_forget)
