"""Real file systems that fail: faulty_fs.cc says what they can be told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Optional

from harness import BUILD, wait_until

#: How long a file system hangs that hangs: as long as a test needs it to, or so many seconds more.
HANG_SECONDS = float(os.environ.get("CKPTD_HANG_SECONDS", "0"))


def why_not() -> Optional[str]:
    """Why no FUSE file system can be mounted here; None if it can."""
    if os.geteuid() != 0:
        return "mounts a FUSE file system: needs root"
    if not os.path.exists("/dev/fuse"):
        return "mounts a FUSE file system: needs /dev/fuse"
    return None


class FaultyFs:
    """One at `folder`; what is written there lies in `backing`."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / "faulty"
        self.backing = parent / "backing"
        self.folder.mkdir()
        self.backing.mkdir()
        self._process = subprocess.Popen(
            [BUILD / "tests" / "faulty_fs", self.backing, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def tell(self, command: str) -> None:
        """Has it do what `command` says."""
        assert self.ask(command) == "ok", command

    def ask(self, command: str) -> str:
        """What it answers."""
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def fail(self, call: str, error: int, skip: int = 0, count: int = 1) -> None:
        """After `skip` calls of that name lets the next `count` fail with `error`."""
        self.tell(f"fail {call} {error} {skip} {count}")

    def wait_for_hanging(self, count: int = 1) -> None:
        """Returns when that many calls hang."""
        wait_until(lambda: int(self.ask("waiting")) >= count, f"{count} calls to hang")

    def clean_up(self) -> None:
        """Ends it; what hangs in it fails."""
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
