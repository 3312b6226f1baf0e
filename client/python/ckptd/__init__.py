"""Checkpoints that leave the training process at memory speed.

`save` returns as soon as the ckptd daemon owns a complete snapshot, and the daemon makes it
durable. What lies at the path then is a plain torch.save file.

    import ckptd
    save = ckptd.save(model.state_dict(), "checkpoints/step-100.pt")
    save.result()                       # optional: wait until it is durable
    state = ckptd.load("checkpoints/step-100.pt")
"""

from __future__ import annotations

import threading
from typing import Any, Iterable, Optional, Union

from . import backend
from . import exit_report  # noqa: F401 - reports at exit what nobody asked after
from .client import DEFAULT_TIMEOUT, Client
from .errors import (
    CheckpointError,
    CheckpointTimeoutError,
    CorruptCheckpointError,
    DaemonUnavailableError,
    SaveError,
    SaveTimeoutError,
    UnpicklableError,
)
from .names import PathLike
from .save import Save
from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_TIMEOUT",
    "CheckpointError",
    "CheckpointTimeoutError",
    "Client",
    "CorruptCheckpointError",
    "DaemonUnavailableError",
    "Save",
    "SaveError",
    "SaveTimeoutError",
    "UnpicklableError",
    "backend",
    "default_client",
    "flush",
    "latest",
    "load",
    "remove",
    "reserve",
    "save",
    "verify",
]

_default: Optional[Client] = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client behind the functions of this module: a `Client()`, made when first needed."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
        return _default


def save(
    obj: Any,
    path: PathLike,
    backend: str = "torch",
    *,
    overlap: Any = None,
    visible: str = "when_durable",
) -> Save:
    """Client.save of the default client."""
    return default_client().save(obj, path, backend, overlap=overlap, visible=visible)


def load(
    path: PathLike,
    map_location: Any = "cpu",
    weights_only: Optional[bool] = None,
    *,
    fallback: Union[PathLike, Iterable[PathLike]] = (),
    verify: bool = True,
    lend: bool = True,
    backend: str = "torch",
) -> Any:
    """Client.load of the default client."""
    return default_client().load(
        path,
        map_location,
        weights_only,
        fallback=fallback,
        verify=verify,
        lend=lend,
        backend=backend,
    )


def latest(folder: PathLike) -> str:
    """Client.latest of the default client."""
    return default_client().latest(folder)


def remove(path: PathLike, wait: bool = True, *, backend: str = "torch") -> None:
    """Client.remove of the default client."""
    default_client().remove(path, wait, backend=backend)


def flush(timeout: Optional[float] = None) -> None:
    """Client.flush of the default client."""
    default_client().flush(timeout)


def reserve(obj_or_bytes: Any, images: int = 2, wait: bool = False) -> int:
    """Client.reserve of the default client."""
    return default_client().reserve(obj_or_bytes, images, wait)
