"""A checkpoint that is there to be loaded, wherever its bytes are."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, Optional, Protocol

import torch

from . import safetensors_file
from .verify import check
from .zip_directory import Source


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
        view = self._content.getbuffer()
        source = Source("the stream", len(view), lambda at, n: view[at : at + n])
        if safetensors_file.is_safetensors(source):
            # Keeps the view, which keeps the bytes; to release it would not be noticed.
            memory = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
            return safetensors_file.load(memory, source, map_location)
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
        with open(self._path, "rb") as file:
            if _is_safetensors(file.fileno(), self._path):
                return _load_safetensors(file.fileno(), self._path, map_location)
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
        if _is_safetensors(self._fd, by_name):
            return _load_safetensors(self._fd, by_name, map_location)
        with open(self._fd, "rb", closefd=False) as file:
            return torch.load(file, map_location=map_location, weights_only=weights_only)


def _source(fd: int, path: str) -> Source:
    return Source(path, os.fstat(fd).st_size, lambda at, n: os.pread(fd, n, at))


def _is_safetensors(fd: int, path: str) -> bool:
    # What is no file, as a folder, is torch's to refuse.
    return stat.S_ISREG(os.fstat(fd).st_mode) and safetensors_file.is_safetensors(_source(fd, path))


def _load_safetensors(fd: int, path: str, map_location: Any) -> Any:
    source = _source(fd, path)
    whole = torch.empty(source.size, dtype=torch.uint8)
    content = memoryview(whole.numpy().data)
    at = 0
    while at < source.size:
        count = os.preadv(fd, [content[at:]], at)
        if count == 0:
            source.corrupt(at, "the file was cut while it was read")
        at += count
    return safetensors_file.load(whole.untyped_storage(), source, map_location)
