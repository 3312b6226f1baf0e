"""Which checkpoint to load: the first of several that can be, the newest that is whole."""

from __future__ import annotations

import logging
import os
import stat
from typing import Any, Callable, Iterable, List, Tuple, TypeVar, Union

from .errors import CorruptCheckpointError
from .names import PathLike
from .verify import check

_T = TypeVar("_T")
_log = logging.getLogger("ckptd")

#: What makes a load go on with the next path.
_NEXT = (CorruptCheckpointError, FileNotFoundError)


def candidates(path: PathLike, fallback: Union[PathLike, Iterable[PathLike]]) -> List[PathLike]:
    """`path` and then those of `fallback`, which may be one path or several."""
    if isinstance(fallback, (str, os.PathLike)):
        fallback = (fallback,)
    return [path, *fallback]


def first_that_loads(load: Callable[[PathLike], _T], paths: List[PathLike]) -> _T:
    """What `load` gives for the first of `paths` that is neither corrupt nor missing.

    Logs why one is passed over. Where there is none, raises the error of the first, which also
    tells of the others.
    """
    errors: List[Exception] = []
    for path, following in zip(paths, [*paths[1:], None]):
        try:
            return load(path)
        except _NEXT as error:
            errors.append(error)
            if following is not None:
                _log.warning("%s Falling back to %s.", error, os.fspath(following))
    if len(errors) == 1:
        raise errors[0]
    raise _with_others(errors) from errors[0]


def newest(folder: str) -> str:
    """Path of the newest checkpoint right in `folder` that is whole.

    Passes over what is no regular file, has a name with a dot at its beginning, or has no
    checksums to compare, and logs each corrupt one. Raises FileNotFoundError if none is left.
    """
    passed_over: List[str] = []
    for name in _newest_first(folder):
        path = os.path.join(folder, name)
        try:
            checked = check(path, path)
        except (CorruptCheckpointError, OSError) as error:
            _log.warning("%s Passed over.", error)
            passed_over.append(str(error))
            continue
        if checked is not None and checked.has_pickle:
            return path
        _log.debug("%s: has nothing to verify it by; passed over", path)
    also = "".join(f"\nAlso: {error}" for error in passed_over)
    raise FileNotFoundError(f"{folder}: there is no torch checkpoint here that verifies.{also}")


def _newest_first(folder: str) -> List[str]:
    """Names of the regular files, by time of modification, then name."""
    found: List[Tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # Removed since it was listed.
                continue
            if stat.S_ISREG(info.st_mode) and not entry.name.startswith("."):
                found.append((info.st_mtime_ns, entry.name))
    return [name for _, name in sorted(found, reverse=True)]


def _with_others(errors: List[Exception]) -> Exception:
    first: Any = errors[0]
    text = str(first) + "".join(f"\nAlso: {error}" for error in errors[1:])
    if isinstance(first, CorruptCheckpointError):
        return CorruptCheckpointError(
            text, path=first.path, record=first.record, offset=first.offset
        )
    return FileNotFoundError(text)
