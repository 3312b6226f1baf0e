"""Checkpoints without a daemon: plain torch.save, whole or not at all, and durable on return."""

from __future__ import annotations

import os
import secrets
import shutil
from typing import Any

import torch

from .errors import DaemonUnavailableError
from .named import takes_names


def check_backend(backend: str, path: str) -> None:
    """Raises DaemonUnavailableError for a backend that only the daemon has; "" is a file's."""
    if backend and takes_names(backend):
        raise DaemonUnavailableError(
            f"{path}: only the daemon has the backend {backend}, and none answers. Start `ckptd`, or "
            'use backend="torch".',
            reason="NO_DAEMON",
            path=path,
        )


def save(obj: Any, path: str) -> None:
    """Writes `obj` to `path` by way of a dot-file beside it. Raises what torch and the OS raise."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a directory; give the name of a file.")
    temporary = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove(path: str) -> None:
    """Removes a file, a symlink itself, or a folder with all in it. A missing one is no error."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
