"""The send buffer of gRPC's own connection to a unix socket, for who streams.

gRPC leaves it as the system has it, 208 KiB: whoever sends a state waits every time that this is full
until the other end has read, and both are woken for each of these pieces. Nor does it tell its
descriptor.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from . import names

# Measured; the system doubles it, and caps it at net.core.wmem_max.
_BYTES = 1 << 20


def widen(address: str) -> None:
    """Gives this process's connections to the daemon at `address` a larger buffer, if they have less."""
    path = names.socket_path(address)
    if not path:
        return
    for name in os.listdir("/proc/self/fd"):
        # Whatever other threads close and open meanwhile: what is changed is what was looked at.
        with suppress(OSError):
            fd = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.close(fd)
                continue
            with socket.socket(fileno=fd) as connection:
                if connection.family == socket.AF_UNIX and connection.getpeername() == path:
                    _widen(connection)


def _widen(connection: socket.socket) -> None:
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _BYTES:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BYTES)
