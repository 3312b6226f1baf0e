"""What SidecarCheckpointIO does by another CheckpointIO: a user's own, or Lightning's for URLs."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional

from ..host_spec import Host
from ..names import PathLike, is_url
from .packages import FABRIC, classes

if TYPE_CHECKING:
    from ..client import Client
    from ..save import Save

_LOCAL = ("file", "local")
# By name, as each of Lightning's packages has its own.
_WRAPPER, _OURS = "_WrappingCheckpointIO", "SidecarCheckpointIO"


class Routes:
    """Which CheckpointIO serves which path. Picklable.

    base: the user's; None: paths of this machine are the daemon's own to write, and URLs are served
    by Lightning's TorchCheckpointIO.
    """

    def __init__(self, owner: str, base: Optional[Any]) -> None:
        self._owner = owner
        self._hosts: Dict[str, Host] = {}
        self.base: Optional[Any] = None
        if base is not None:
            self._wrap(base)

    def complete(self, base: Any) -> None:
        """Takes `base` where there is none: here, or in a wrapper that wraps nothing yet."""
        if self.base is None:
            self._wrap(base)
        else:
            _fill(self.base, base)

    def _wrap(self, base: Any) -> None:
        if any(_is(one, _OURS) for one in _layers(base)):
            # Its save would wait, in the host, for the one that runs there.
            raise ValueError(
                f"checkpoint_io: {type(base).__name__} saves through the daemon already; leave out one"
                f" {self._owner}."
            )
        host = Host(base)
        host.check()
        self._hosts[""] = host
        self.base = base

    def to(self, path: PathLike) -> Optional[Host]:
        """The host for `path`; None where the daemon writes it itself."""
        if self.base is not None:
            _fill(self.base, None)
            return self._hosts[""]
        if not is_url(path):
            return None
        scheme = os.fspath(path).split("://", 1)[0]
        host = self._hosts.get(scheme)
        if host is None:
            self._warn(scheme)
            host = self._hosts[scheme] = Host(_for_scheme(scheme), label=f"TorchCheckpointIO {scheme}")
        return host

    def save(
        self,
        client: "Client",
        checkpoint: Any,
        path: PathLike,
        overlap: Any,
        options: Dict[str, Any],
    ) -> "Save":
        """Saves by the host for `path`; options: what else its save_checkpoint is given."""
        host = self.to(path)
        assert host is not None
        if self._is_of_this_process(path):
            return client.save_here(host, checkpoint, path, **options)
        return client.save_with(host, checkpoint, path, overlap=overlap, **options)

    def load(self, client: "Client", path: PathLike, read: Callable[[Any], Any]) -> Any:
        """What `read` gives for the CheckpointIO for `path`, when its turn has come."""
        host = self.to(path)
        assert host is not None
        if self._is_of_this_process(path):
            return read(host.base)
        return client.load_with(path, lambda: read(host.base))

    def remove(self, client: "Client", path: PathLike, wait: bool) -> None:
        """Removes by the host for `path`, as Client.remove does."""
        host = self.to(path)
        assert host is not None
        if self._is_of_this_process(path):
            host.base.remove_checkpoint(path)
        else:
            client.remove_with(host, path, wait)

    def teardown(self) -> None:
        """Tears the user's CheckpointIO down, in this process."""
        teardown = getattr(self.base, "teardown", None)
        if teardown is not None:
            teardown()

    def _is_of_this_process(self, path: PathLike) -> bool:
        return self.base is None and _stays_in_process(os.fspath(path).split("://", 1)[0])

    def _warn(self, scheme: str) -> None:
        if _stays_in_process(scheme):
            how = "in this process, which training waits for"
        else:
            how = "in a process of its own, in the order of all other saves"
        warnings.warn(
            f"{self._owner}: {scheme}:// paths are no files for the daemon; Lightning's "
            f"TorchCheckpointIO serves them, {how}. Give a path on a mounted file system for the rest.",
            RuntimeWarning,
            stacklevel=4,
        )


def is_wrapper(io: Any) -> bool:
    """Whether `io` is one of Lightning's wrappers of a CheckpointIO, or one of ours."""
    return _is(io, _WRAPPER) or _is(io, _OURS)


def _is(io: Any, kind: str) -> bool:
    return any(one.__name__ == kind for one in type(io).__mro__)


def _layers(io: Any) -> Iterator[Any]:
    """`io`, what it wraps, and so on."""
    while io is not None:
        yield io
        io = io.checkpoint_io if _is(io, _WRAPPER) else None


def _fill(io: Any, base: Optional[Any]) -> None:
    """Gives `base`, or else Lightning's own, to the wrapper at or in `io` that wraps nothing yet."""
    *_, innermost = _layers(io)
    if _is(innermost, _WRAPPER):
        innermost.checkpoint_io = _torch_checkpoint_io() if base is None else base


def local(path: PathLike) -> PathLike:
    """`path`, without the scheme where that says that it is of this machine."""
    if is_url(path):
        scheme, rest = os.fspath(path).split("://", 1)
        if scheme in _LOCAL:
            return rest
    return path


class _ForScheme:
    """Lightning's TorchCheckpointIO, with an fsspec implementation that this program registered."""

    def __init__(self, scheme: str, implementation: Optional[type]) -> None:
        self._scheme = scheme
        self._implementation = implementation
        self._io: Any = _torch_checkpoint_io()

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._implementation is not None:
            import fsspec

            fsspec.register_implementation(self._scheme, self._implementation, clobber=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._io, name)


def _for_scheme(scheme: str) -> _ForScheme:
    from fsspec.registry import registry

    return _ForScheme(scheme, registry.get(scheme))


def _torch_checkpoint_io() -> Any:
    return classes(FABRIC, "plugins.io.torch_io", "TorchCheckpointIO")[0]()


def _stays_in_process(scheme: str) -> bool:
    """Whether another process would see nothing of what is saved there."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    try:
        return issubclass(fsspec.get_filesystem_class(scheme), MemoryFileSystem)
    except (ImportError, ValueError):  # the save says so
        return False
