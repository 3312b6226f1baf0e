"""File systems of a test's own."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`, which is made; skips the test where it may not be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Takes folders in shared memory over into one of its own, where it is to have that; and hides $0.
_OTHER_CONTAINER = """
if [ "$1" = own ]; then
  folders=$(find /dev/shm -mindepth 1 -maxdepth 1 -type d -name 'ckptd-test-*')
  mount -t tmpfs tmpfs /dev/shm && mkdir -p -m 700 $folders
fi && mount --bind /dev/null "$0" && shift && exec "$@"
"""


def another_container(hidden: str, own_memory: bool) -> Sequence[str]:
    """What runs a command in a mount namespace where the program `hidden` is another file.

    own_memory: whether shared memory is of its own there, too.
    """
    memory = "own" if own_memory else "shared"
    return ("unshare", "--mount", "sh", "-c", _OTHER_CONTAINER, os.path.realpath(hidden), memory)


def remount(folder: Path, options: str) -> None:
    """Changes the options of what is mounted at `folder`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
