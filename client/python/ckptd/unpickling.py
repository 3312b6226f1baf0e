"""What torch.load gives for the common checkpoint, in a tenth of its time.

torch.load with weights_only reads a pickle in Python, opcode by opcode, and asks several times for
each tensor whether tensors are fake now. The pickle of a plain state dict names five globals. Where a
file has no others, pickle's own reader, in C, makes the same objects of it; it is given nothing else
to call. All other files are torch.load's.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
from typing import Any, Callable, Dict, List

import torch

from .zip_directory import STORED, Record, Source, data_offset

_PROTOCOL = b"\x80\x02"  # what torch.save writes
_BESIDE = ("version", ".format_version", ".storage_alignment", ".data/serialization_id")

# torch imports its settings when it is first asked for one, for 3 ms: now, and not in the first load.
torch.serialization.get_default_load_endianness()


class NotPlainError(Exception):
    """The file, or the state that torch is in, is for torch.load."""


def load(
    memory: torch.UntypedStorage, source: Source, records: List[Record], map_location: Any
) -> Any:
    """The state in the zip file in `memory`, which `source` reads; its tensors are in that memory.

    map_location: as of torch.load. Raises NotPlainError, with nothing done, where only torch.load
    can tell what is in it.
    """
    if not _torch_is_plain() or not (map_location is None or _is_cpu(map_location)):
        raise NotPlainError
    try:
        contents = _Contents(source, records)
        content = io.BytesIO(contents.pickle)
        return _Unpickler(content, memory, contents, anywhere=map_location is not None).load()
    except Exception as error:  # Whatever a broken pickle makes of it, torch.load has the words.
        raise NotPlainError from error


def _torch_is_plain() -> bool:
    """Whether nothing is set in this thread by which torch.load would make other objects."""
    state = getattr(torch.serialization, "_serialization_tls", None)
    plain: bool = (
        sys.byteorder == "little"
        and torch.serialization.get_default_load_endianness()
        in (None, torch.serialization.LoadEndianness.LITTLE)
        and not getattr(state, "skip_data", False)
        and torch._C._len_torch_function_stack() == 0
        and torch._guards.detect_fake_mode(None) is None
    )
    return plain


def _is_cpu(map_location: Any) -> bool:
    return type(map_location) in (str, torch.device) and str(map_location) == "cpu"


class _Contents:
    """The records of a file that has nothing but tensors, their pickle, and what says so."""

    def __init__(self, source: Source, records: List[Record]) -> None:
        self._source = source
        prefix = next(r.name for r in records if r.name.endswith(b"/data.pkl"))[: -len("data.pkl")]
        self._tensors: Dict[str, Record] = {}
        others: Dict[str, Record] = {}
        for record in records:
            name = record.name[len(prefix) :].decode()
            if record.method != STORED or not record.name.startswith(prefix):
                raise NotPlainError
            if name.startswith("data/"):
                self._tensors[name[len("data/") :]] = record
            else:
                others[name] = record
        self.pickle = self._read(others.pop("data.pkl"))
        order = others.pop("byteorder", None)
        plain = (
            self.pickle.startswith(_PROTOCOL)
            and (order is None or self._read(order) == b"little")
            and all(name in _BESIDE for name in others)
        )
        if not plain:
            raise NotPlainError

    def _read(self, record: Record) -> bytes:
        return bytes(self._source.read(data_offset(self._source, record), record.size_bytes))

    def place(self, key: str, nbytes: int) -> int:
        """Where the bytes of a storage begin in the file."""
        record = self._tensors[key]
        if record.size_bytes != nbytes:
            raise NotPlainError
        return data_offset(self._source, record)


class _Unpickler(pickle.Unpickler):
    """anywhere: whether tensors come to the CPU wherever they were."""

    def __init__(
        self, file: io.BytesIO, memory: torch.UntypedStorage, contents: _Contents, anywhere: bool
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._memory = memory
        self._contents = contents
        self._anywhere = anywhere
        self._storages: Dict[str, torch.TypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            # Nobody can write into a dtype, as a pickle could into a class.
            return torch.serialization.StorageType(name).dtype  # type: ignore[no-untyped-call]
        if module == "torch._utils":
            # Not the function itself, whose attributes a pickle can set.
            function = _FUNCTIONS[name]
            return lambda *arguments: function(*arguments)
        raise NotPlainError

    def persistent_load(self, saved_id: Any) -> torch.TypedStorage:
        kind, dtype, key, location, numel = saved_id
        if kind != "storage" or type(dtype) is not torch.dtype or type(key) is not str:
            raise NotPlainError
        if location != "cpu" and not self._anywhere:
            raise NotPlainError
        storage = self._storages.get(key)
        if storage is None:
            nbytes = numel * dtype.itemsize
            at = self._contents.place(key, nbytes)
            storage = torch.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=self._memory[at : at + nbytes],
                dtype=dtype,
                _internal=True,
            )
            self._storages[key] = storage
        elif storage.dtype != dtype:
            raise NotPlainError
        return storage


def _rebuild_tensor(
    storage: torch.TypedStorage,
    storage_offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    backward_hooks: Any,
    metadata: Any = None,
) -> torch.Tensor:
    """As torch._utils._rebuild_tensor_v2."""
    tensor = torch.empty((0,), dtype=storage.dtype)
    tensor.set_(storage._untyped_storage, storage_offset, size, stride)
    tensor.requires_grad = requires_grad
    if metadata:
        torch._utils.set_tensor_metadata(tensor, metadata)  # type: ignore[no-untyped-call]
    tensor._backward_hooks = backward_hooks
    return tensor


# Of torch._utils, by their names in a pickle.
_FUNCTIONS: Dict[str, Callable[..., Any]] = {
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_parameter": torch._utils._rebuild_parameter,
}
