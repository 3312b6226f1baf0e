"""Takes a checkpoint apart into bytes, to compare it or to write down what it was."""

from __future__ import annotations

import collections
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import numpy as np
import torch

Bytes = Union[bytes, memoryview]

_PLAIN = (int, float, complex, str, bool, bytes, bytearray, range, type(None))
_SEQUENCES = (list, tuple, collections.deque)


class Plain:
    """A class of the user's, compared by its attributes. Others are an error, not a guess."""


def pieces(obj: Any, where: str = "state") -> Iterator[Tuple[str, Bytes]]:
    """Every byte of `obj`, each piece with where it is; types, shapes and order are pieces, too.

    A tensor counts with its whole storage, so that a view shows what it does not look at. Raises
    TypeError for what it does not know.
    """
    if isinstance(obj, torch.storage.TypedStorage):  # what torch.load makes of any storage
        obj = obj._untyped_storage
    yield f"{where}: type", f"{type(obj).__module__}.{type(obj).__qualname__}".encode()
    if isinstance(obj, torch.Tensor):
        layout = (obj.dtype, tuple(obj.shape), obj.stride(), obj.storage_offset())
        yield f"{where}: layout", repr(layout).encode()
        yield where, _storage_bytes(obj.detach().untyped_storage())
    elif isinstance(obj, torch.UntypedStorage):
        yield where, _storage_bytes(obj)
    elif isinstance(obj, (np.ndarray, np.generic)):
        yield f"{where}: layout", repr((obj.dtype, obj.shape)).encode()
        yield where, obj.tobytes()
    elif isinstance(obj, dict):
        yield f"{where}: keys", repr(list(obj)).encode()
        yield f"{where}: metadata", repr(getattr(obj, "_metadata", None)).encode()
        for key, value in obj.items():
            yield from pieces(value, f"{where}[{key!r}]")
    elif isinstance(obj, _SEQUENCES):
        yield f"{where}: length", str(len(obj)).encode()
        for index, value in enumerate(obj):
            yield from pieces(value, f"{where}[{index}]")
    elif isinstance(obj, (set, frozenset)):
        yield where, repr(sorted(map(repr, obj))).encode()
    elif isinstance(obj, _PLAIN):
        yield where, repr(obj).encode()
    elif isinstance(obj, Plain):
        yield from pieces(vars(obj), f"{where}.__dict__")
    else:
        raise TypeError(f"{where}: cannot take a {type(obj)} apart")


def digest(obj: Any) -> str:
    """A hash of every byte of `obj`."""
    sha = hashlib.sha256()
    for where, data in pieces(obj):
        sha.update(f"{where} {len(data)} ".encode())
        sha.update(data)
    return sha.hexdigest()


class FileDigests:
    """The digests of checkpoint files; one that has not changed is read once."""

    def __init__(self) -> None:
        self._known: Dict[str, Tuple[Tuple[int, int, int], str]] = {}

    def of(self, path: Path) -> Optional[str]:
        """The digest of what torch.load gives, with and without weights_only; None: no file.

        Raises what torch.load raises for a file that is not whole.
        """
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                identity = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._known.get(str(path), (None,))[0] == identity:
                    return self._known[str(path)][1]
                state = digest(torch.load(file, weights_only=True))
                file.seek(0)
                assert digest(torch.load(file, weights_only=False)) == state
        except FileNotFoundError:
            return None
        self._known[str(path)] = (identity, state)
        return state


def bytes_that_differ(expected: Any, found: Any) -> int:
    """How many bytes differ; a piece that only one of the two has counts whole."""
    ours, theirs = dict(pieces(expected)), dict(pieces(found))
    places = {**ours, **theirs}
    return sum(_differ(ours.get(where, b""), theirs.get(where, b"")) for where in places)


def _differ(a: Bytes, b: Bytes) -> int:
    common = min(len(a), len(b))
    left, right = (np.asarray(memoryview(side))[:common] for side in (a, b))
    return int(np.count_nonzero(left != right)) + max(len(a), len(b)) - common


def _storage_bytes(storage: torch.UntypedStorage) -> memoryview:
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
