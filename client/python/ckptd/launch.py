"""Starts a daemon for this user where there is none.

Many ranks may try at once: each starts one, the daemon's own lock lets one win, and the others end
with exit code 1. So a daemon that has ended is no failure as long as some daemon answers in time.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import List, Optional

from . import names
from .errors import DaemonUnavailableError
from .installed import find_daemon
from .session import Session

#: Seconds until a daemon must serve that this process, or another rank, has started.
START_TIMEOUT = 30.0
# Seconds that another daemon gets to answer after ours has ended.
_LOSER_PATIENCE = 5.0
_POLL_SECONDS = 0.02
_IDLE_EXIT = "600s"
_LOG_LINES = 5

# Children, kept so that they are reaped when they end and not warned about before.
_started: List["subprocess.Popen[bytes]"] = []


def start(session: Session) -> None:
    """Starts a daemon at the session's address and connects. Raises DaemonUnavailableError."""
    address = session.address
    path = names.socket_path(address)
    if not path:
        raise DaemonUnavailableError(
            f"{address}: no daemon answers, and one can only be started on a unix socket of this "
            "machine. Start it where the address leads, or give a unix:PATH address.",
            reason="UNAVAILABLE",
        )
    binary = find_daemon()
    if binary is None:
        raise DaemonUnavailableError(
            f"{address}: no daemon answers, and there is no `ckptd` to start. Put it on PATH, set "
            "CKPTD_BIN, or start it yourself.",
            reason="UNAVAILABLE",
        )
    log = Path(path).with_name("ckptd.log")
    child = _spawn(binary, path, log)
    _wait_until_connected(session, child, log)


def _spawn(binary: str, path: str, log: Path) -> "subprocess.Popen[bytes]":
    try:
        os.makedirs(log.parent, mode=0o700, exist_ok=True)
        with open(log, "ab") as output:
            child = subprocess.Popen(
                [binary, "--socket", path, "--idle-exit", _IDLE_EXIT],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        raise DaemonUnavailableError(
            f"{binary}: could not be started: {error.strerror or error} ({error.filename}). Start "
            "`ckptd` yourself, or set CKPTD_BIN.",
            reason="UNAVAILABLE",
        ) from error
    _started[:] = [one for one in _started if one.poll() is None]
    _started.append(child)
    return child


def _wait_until_connected(session: Session, child: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    ended = False
    while True:
        try:
            session.connect()
            return
        except DaemonUnavailableError as error:
            if child.poll() is not None and not ended:
                ended = True
                deadline = min(deadline, time.monotonic() + _LOSER_PATIENCE)
            if time.monotonic() > deadline:
                what = f"ended with code {child.returncode}" if ended else "does not serve yet"
                raise DaemonUnavailableError(
                    f"{session.address}: the daemon that was started here {what}. Its last words "
                    f"({log}):\n{_last_lines(log)}",
                    reason="UNAVAILABLE",
                ) from error
        time.sleep(_POLL_SECONDS)


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        lines = []
    return "\n".join(f"  {line}" for line in lines) or "  (none)"
