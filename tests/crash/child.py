"""A process of a load, which is told by lines and answers by lines."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import REPO

#: For its end, which may wait for a daemon to come back.
_END_SECONDS = 120.0


class Child:
    """Runs `script` with a dataclass as JSON for its argument; its errors go to `log`."""

    def __init__(self, script: Path, config: Any, log: Path) -> None:
        self._log = log
        folders = [REPO / "client" / "python", REPO / "tests" / "python", REPO / "tests" / "crash"]
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(dataclasses.asdict(config))],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def tell(self, order: str) -> None:
        """Gives an order."""
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def listen(self) -> str:
        """Waits for its next line."""
        line = self.process.stdout.readline()
        assert line, self._log.read_text(encoding="utf-8")
        return line.strip()

    def hear(self, answer: str) -> None:
        """Waits until it says so."""
        line = self.listen()
        assert line == answer, f"{line!r}: {self._log.read_text(encoding='utf-8')}"

    def check(self) -> None:
        """Fails if it has ended."""
        assert self.process.poll() is None, self._log.read_text(encoding="utf-8")

    def end(self) -> None:
        """Ends it when it has done what it is at."""
        self.process.stdin.close()
        assert self.process.wait(_END_SECONDS) == 0, self._log.read_text(encoding="utf-8")

    def close(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
