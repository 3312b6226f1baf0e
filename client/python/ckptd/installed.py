"""What there is of ckptd on this machine beside the client: the daemon, and a library that copies."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shutil
from pathlib import Path
from typing import Callable, Iterator, Optional

_COPY_LIBRARY = "libckptd_copy.so"
_log = logging.getLogger("ckptd")


def find_daemon() -> Optional[str]:
    """The binary to start: $CKPTD_BIN, `ckptd` on PATH, or the one built in this source tree."""
    binary = os.environ.get("CKPTD_BIN") or shutil.which("ckptd")
    if binary:
        return binary
    for folder in Path(__file__).resolve().parents:
        built = folder / "build" / "bin" / "ckptd"
        if (folder / "proto" / "ckptd").is_dir() and os.access(built, os.X_OK):
            return str(built)
    return None


@functools.lru_cache(maxsize=None)
def stream_copy() -> Callable[[int, int, int], object]:
    """Copies (to, from, bytes), addresses in this process, without the interpreter's lock.

    Past the processor's caches, by libckptd_copy.so; by ctypes.memmove, which has half as much
    traffic again, where that is not installed.
    """
    for name in _copy_libraries():
        try:
            copy = ctypes.CDLL(name).ckptd_stream_copy
        except (OSError, AttributeError) as error:
            _log.debug("%s: cannot be used: %s", name, error)
            continue
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        copy.restype = None
        return copy
    return ctypes.memmove


def _copy_libraries() -> Iterator[str]:
    """Beside the daemon, and where the system looks."""
    daemon = find_daemon()
    if daemon is not None:
        prefix = os.path.dirname(os.path.dirname(os.path.realpath(daemon)))
        yield os.path.join(prefix, "lib", _COPY_LIBRARY)
    yield _COPY_LIBRARY
