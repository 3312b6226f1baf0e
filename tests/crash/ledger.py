"""What a process that saves has asked for, written down where it survives that process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List


class Ledger:
    """Writes one JSON object a line, each by one write: SIGKILL leaves it whole or away."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, event: str, **what: Any) -> None:
        """Appends one line."""
        os.write(self._fd, f"{json.dumps({'event': event, **what})}\n".encode())


class LedgerReader:
    """Reads a ledger, which may still grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def events(self) -> List[Dict[str, Any]]:
        """What came since the last call; nothing while there is no file."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        return [json.loads(line) for line in data.splitlines()]
