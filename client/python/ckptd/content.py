"""A checkpoint that is there to be loaded, wherever its bytes are."""

from __future__ import annotations

import io
import os
from typing import Any, Optional, Protocol

import torch

from .verify import check


class Content(Protocol):
    """Checked before it is loaded, if at all; each at most once."""

    def check(self, path: str) -> None:
        """Raises CorruptCheckpointError, OSError; `path` is for messages."""

    def load(self, map_location: Any, weights_only: Optional[bool]) -> Any:
        """What torch.load gives; raises what it raises."""


class InMemory:
    """Bytes that were streamed."""

    def __init__(self, content: io.BytesIO) -> None:
        self._content = content

    def check(self, path: str) -> None:
        """As Content.check."""
        check(self._content, path)

    def load(self, map_location: Any, weights_only: Optional[bool]) -> Any:
        """As Content.load."""
        return torch.load(self._content, map_location=map_location, weights_only=weights_only)


class FileAt:
    """A file by its path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def check(self, path: str) -> None:
        """As Content.check."""
        check(self._path, path)

    def load(self, map_location: Any, weights_only: Optional[bool]) -> Any:
        """As Content.load."""
        return torch.load(self._path, map_location=map_location, weights_only=weights_only)


class OpenFile:
    """An open file, whatever becomes of its name. The descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def check(self, path: str) -> None:
        """As Content.check."""
        check(self._fd, path)

    def load(self, map_location: Any, weights_only: Optional[bool]) -> Any:
        """As Content.load."""
        # By name, which torch reads faster than a Python file object; it leads to the open file.
        by_name = f"/proc/self/fd/{self._fd}"
        if os.path.exists(by_name):
            return FileAt(by_name).load(map_location, weights_only)
        with open(self._fd, "rb", closefd=False) as file:
            return torch.load(file, map_location=map_location, weights_only=weights_only)
