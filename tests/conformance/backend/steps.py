"""The test's end of steps.c: at which call that changes a folder a process dies, fails or waits."""

from __future__ import annotations

import errno
import mmap
import struct
import subprocess
from pathlib import Path
from typing import Dict

from harness import wait_until

_FOLDER_BYTES = 4096
_COUNT, _KILL, _FAIL, _HOLD = range(4)
_FAR = 1 << 30


def build(folder: Path) -> Path:
    """Compiles what is preloaded."""
    library = folder / "steps.so"
    source = Path(__file__).with_name("steps.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"], check=True)
    return library


class Steps:
    """Shared with each process that has `environment`, which do nothing of it at first."""

    def __init__(self, library: Path, control: Path) -> None:
        control.write_bytes(bytes(mmap.PAGESIZE * 2))
        with open(control, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.environment: Dict[str, str] = {
            "LD_PRELOAD": str(library),
            "CKPTD_STEPS": str(control),
        }

    def count(self, folder: Path) -> None:
        """From now on the calls beneath `folder` are counted: `counted`."""
        self._arm(folder, _FAR, _COUNT)

    def kill(self, folder: Path, number: int) -> None:
        """Whoever makes the call of that number, from 1, beneath `folder` dies before it."""
        self._arm(folder, number, _KILL)

    def fail(self, folder: Path, number: int, error: int = errno.EIO) -> None:
        """That call fails."""
        self._arm(folder, number, _FAIL, error)

    def hold(self, folder: Path, number: int) -> None:
        """That call waits for `release`."""
        self._arm(folder, number, _HOLD)

    def await_held(self) -> None:
        """Returns when a call is held."""
        wait_until(lambda: self._get(3), "the call that is to be held")

    def release(self) -> None:
        """Lets the call go on that is held, and all others."""
        self.rest()
        self._put(3, 0)

    def rest(self) -> None:
        """Nothing happens from now on."""
        self._memory[:1] = b"\0"

    @property
    def counted(self) -> int:
        """How many calls there were since `count`."""
        return _FAR - self._get(0)

    @property
    def reached(self) -> bool:
        """Whether there were as many calls as was said."""
        return self._get(0) <= 0

    def _arm(self, folder: Path, number: int, action: int, error: int = 0) -> None:
        path = str(folder).encode()
        assert len(path) < _FOLDER_BYTES
        self.rest()
        for at, value in enumerate((number, action, error, 0)):
            self._put(at, value)
        self._memory[1 : len(path) + 1] = path[1:] + b"\0"
        self._memory[:1] = path[:1]

    def _put(self, at: int, value: int) -> None:
        struct.pack_into("=i", self._memory, _FOLDER_BYTES + 4 * at, value)

    def _get(self, at: int) -> int:
        return struct.unpack_from("=i", self._memory, _FOLDER_BYTES + 4 * at)[0]
