"""Becomes a command for which no file system has unnamed files (O_TMPFILE), as some have none.

usage: no_tmpfile.py COMMAND...

A filter in the kernel answers openat with EOPNOTSUPP where that flag is set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OPENAT = {"x86_64": 257, "aarch64": 56}
_NUMBER_AT, _FLAGS_AT = 0, 32  # in struct seccomp_data: nr, and the low half of args[2]
_TMPFILE = 0o20000000  # without O_DIRECTORY, which O_TMPFILE includes


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def forbid() -> None:
    """Sets the filter for this process and what it becomes."""
    code = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _NUMBER_AT),
            (_EQUAL, 0, 3, _OPENAT[os.uname().machine]),
            (_LOAD, 0, 0, _FLAGS_AT),
            (_ANY_BIT, 0, 1, _TMPFILE),
            (_RETURN, 0, 0, _ERRNO | errno.EOPNOTSUPP),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid()
    os.execv(sys.argv[1], sys.argv[1:])
