"""Takes an object apart as torch.save does: the bytes of data.pkl, and the live storages.

The pickle is the one torch.save writes, byte for byte, because it is made the same way: protocol 2,
with a persistent id for each storage, or by pickle_writer.py, which knows how pickle writes what plain
states are made of. Nothing of a tensor's size is copied here. `_save` in
torch/serialization.py is the model for `StoragePickler.persistent_id`.
"""

from __future__ import annotations

import io
import logging
import pickle
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch.serialization import location_tag, normalize_storage_type

from . import pickle_writer
from .errors import UnpicklableError
from .structure import UnusualError, trace

_log = logging.getLogger("ckptd")

_PROTOCOL = 2
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
# Zip headers, descriptor and directory entry of one record, with room for alignment.
_RECORD_OVERHEAD_BYTES = 320


@dataclass
class StorageRecord:
    """One storage of the object. Its key in the pickle is its place in the list."""

    storage: torch.UntypedStorage
    dtype: torch.dtype
    size_bytes: int  # numel * itemsize: what readers expect, which may be less than nbytes()


@dataclass
class Captured:
    """An object in the two parts that make a checkpoint. Holds the storages alive.

    The lists have an entry for each storage, in the order of their keys in the pickle.
    """

    pickle: bytes
    storages: List[torch.UntypedStorage]
    dtypes: List[torch.dtype]
    sizes: List[int]
    #: Where the bytes are, if that is known and in this process's own memory.
    addresses: Optional[List[int]] = None

    @property
    def records(self) -> List[StorageRecord]:
        """The same, storage by storage."""
        return list(map(StorageRecord, self.storages, self.dtypes, self.sizes))

    def image_bytes(self) -> int:
        """About the size of the finished file; never less."""
        payload = len(self.pickle) + sum(self.sizes)
        return payload + _RECORD_OVERHEAD_BYTES * (len(self.sizes) + 8)


class StoragePickler(pickle.Pickler):
    """Collects the storages of what it pickles, as torch.save does."""

    def __init__(self, out: io.BytesIO) -> None:
        super().__init__(out, protocol=_PROTOCOL)
        self.storages: List[torch.UntypedStorage] = []
        self.dtypes: List[torch.dtype] = []
        self.sizes: List[int] = []
        # Keyed by StorageImpl. One str object for each storage: pickle refers back to it by
        # identity, so that another object with the same text would give other bytes.
        self._keys: dict[int, str] = {}
        self._dtype_at: dict[int, torch.dtype] = {}

    def persistent_id(self, obj: Any) -> Optional[Tuple[Any, ...]]:
        """What stands for a storage; None for all else."""
        typed: Any = obj  # what torch says of the types of storages is not enough
        storage: torch.UntypedStorage
        if isinstance(obj, torch.storage.TypedStorage):
            storage = obj._untyped_storage
            dtype = obj.dtype
            storage_type = getattr(torch, typed._pickle_storage_type())
            numel = typed._size()
            size_bytes = numel * typed._element_size()
        elif torch.is_storage(obj):
            storage = typed
            dtype = torch.uint8
            storage_type = normalize_storage_type(type(obj))  # type: ignore[no-untyped-call]
            numel = size_bytes = obj.nbytes()
        else:
            return None
        self._check_dtype(storage, dtype)
        key = self._keys.get(storage._cdata)
        if key is None:
            key = self._keys[storage._cdata] = str(len(self.storages))
            self.storages.append(storage)
            self.dtypes.append(dtype)
            self.sizes.append(size_bytes)
        fake_device = getattr(obj, "_fake_device", None)
        location = location_tag(storage) if fake_device is None else str(fake_device)
        return ("storage", storage_type, key, location, numel)

    def _check_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        if storage.device.type == "meta" or storage.data_ptr() == 0:
            return
        if self._dtype_at.setdefault(storage.data_ptr(), dtype) != dtype:
            raise RuntimeError(
                "Cannot save multiple tensors or storages that view the same data as different "
                "types. Save one of them, or a clone() of the other."
            )


def capture(
    obj: Any, path: str = "object", structures: Optional[pickle_writer.Structures] = None
) -> Captured:
    """Splits `obj` into data.pkl and storages; copies no tensor.

    The storages stay live: whoever changes them before they are copied changes the checkpoint.
    Raises UnpicklableError that names the part of `obj` which cannot be pickled, and what
    torch.save would raise in every other case. `path` is where the checkpoint is to go, for
    messages; `structures` has the pickles of earlier saves.
    """
    if pickle_writer.works(lambda sample: by_pickle(sample, path).pickle):
        try:
            found = trace(obj)
            pickled = structures.pickle_of(found) if structures else pickle_writer.write(found)
            return Captured(pickled, found.storages, found.dtypes, found.sizes, found.addresses)
        except UnusualError as error:
            _log.debug("%s: has %s; leaving it to pickle", path, error)
    return by_pickle(obj, path)


def by_pickle(
    obj: Any, path: str, make: Optional[Callable[[io.BytesIO], StoragePickler]] = None
) -> Captured:
    """Does it by pickle, whatever `obj` is; with a pickler of `make`'s, if that is given."""
    out = io.BytesIO()
    pickler = StoragePickler(out) if make is None else make(out)
    try:
        pickler.dump(obj)
    except _UNPICKLABLE as error:
        where, part, cause = _innermost_failure(obj, error)
        raise UnpicklableError(
            f"{path}: {where} cannot be pickled: it is a {_type_name(part)} ({cause}). "
            "Remove it from the checkpoint, or keep only the data needed to make it again.",
            reason="UNPICKLABLE",
            path=path,
        ) from error
    return Captured(out.getvalue(), pickler.storages, pickler.dtypes, pickler.sizes)


def _innermost_failure(obj: Any, error: Exception) -> Tuple[str, Any, Exception]:
    """Follows `obj` to the smallest part that cannot be pickled on its own."""
    where, seen = "state", {id(obj)}
    while True:
        for step, child in _children(obj):
            if id(child) in seen:
                continue
            seen.add(id(child))
            child_error = _pickle_error(child)
            if child_error is not None:
                where, obj, error = where + step, child, child_error
                break
        else:
            return where, obj, error


def _pickle_error(obj: Any) -> Optional[Exception]:
    try:
        StoragePickler(io.BytesIO()).dump(obj)
    except _UNPICKLABLE as error:
        return error
    except Exception:  # noqa: BLE001 - another fault than the one that is looked for
        return None
    return None


def _children(obj: Any) -> Iterator[Tuple[str, Any]]:
    """The parts of `obj`, each with the expression that leads to it."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{key!r:.80}]", value
            yield f" key {key!r:.80}", key
    elif isinstance(obj, (list, tuple)):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif isinstance(obj, (set, frozenset)):
        for value in obj:
            yield f" element {value!r:.80}", value
    if not isinstance(obj, type):
        for name, value in getattr(obj, "__dict__", {}).items():
            yield f".{name}", value


def _type_name(obj: Any) -> str:
    name = f"{type(obj).__module__}.{type(obj).__qualname__}"
    return f"{name} {obj.__qualname__!r}" if hasattr(obj, "__qualname__") else name
