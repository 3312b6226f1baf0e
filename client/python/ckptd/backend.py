"""Backends in Python: `ckptd.save(obj, path, backend="name")` by a CheckpointIO of one's own.

    import ckptd

    ckptd.backend.register("mine", MyCheckpointIO)
    ckptd.save(state, "checkpoints/step-100", backend="mine")
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

from .host_spec import Host

# What daemons have; a plugin's name hides nothing, as it is not asked for here.
_BUILT_IN = ("torch", "xla", "xla-xser", "safetensors", "python")

_hosts: Dict[str, Host] = {}


def register(name: str, factory: Callable[[], Any]) -> None:
    """Makes `name` a backend of this process: what `factory` makes saves, loads and removes.

    factory: called without arguments, in the host process and, for load, in this one. It gives an
    object with save_checkpoint(checkpoint, path), load_checkpoint(path) and remove_checkpoint(path);
    a class of that kind will do. It must be picklable; lambdas and functions of the program itself
    are.

    A later registration of the name takes its place. Raises ValueError for the name of a backend
    that every daemon has, TypeError for a factory that cannot be called or pickled.
    """
    if not name or name in _BUILT_IN:
        raise ValueError(f"{name!r}: is not free for a backend of one's own; choose another name.")
    if not callable(factory):
        raise TypeError(f"{name}: {factory!r} cannot be called; give a class or a function.")
    host = Host(factory=factory, label=name)
    host.check()
    _hosts[name] = host


def find(name: str) -> Optional[Host]:
    """The host of a registered backend."""
    return _hosts.get(name)
