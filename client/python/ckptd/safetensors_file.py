"""Reads safetensors files, and checks them: eight bytes of length, a header in JSON, the data.

Without the package of that name, and without a copy: tensors lie in the memory that has the file.
"""

from __future__ import annotations

import json
import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch

from . import named
from .checksum import crc32
from .zip_directory import Source

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 8 << 20
_MARK = b'{"__metadata__":{"ckptd.crc32":"'
# A mark that differs from ours in no more bytes than this is a damaged one.
_FEW_BYTES = 4
_NO_CHECKSUM = b"00000000"
_METADATA = "__metadata__"
_OURS = "ckptd.crc32"
# What differs from torch's names; others that are not here have those, in files of ours.
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


class Entry(NamedTuple):
    """One tensor; begin and end are offsets in the file."""

    name: str
    dtype: torch.dtype
    shape: List[int]
    begin: int
    end: int


class Header(NamedTuple):
    """What is in a file, in the order of its bytes."""

    metadata: Dict[str, str]
    entries: List[Entry]


def is_safetensors(source: Source) -> bool:
    """Whether a file begins as such a file does."""
    if source.size < 10:
        return False
    head = bytes(source.read(0, 9))
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= min(_MAX_HEADER_BYTES, source.size - 8) and head[8:] == b"{"


def read_header(source: Source) -> Header:
    """Raises CorruptCheckpointError where the header does not describe exactly the file."""
    length = int.from_bytes(bytes(source.read(0, 8)), "little")
    try:
        fields = json.loads(bytes(source.read(8, length)))
        metadata = fields.pop(_METADATA, {})
        _expect(all(type(value) is str for value in metadata.values()), "is no text", _METADATA)
        entries = [_entry(name, fields[name], 8 + length) for name in fields]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        source.corrupt(8, f"the header is broken: {error!r:.300}")
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    at = 8 + length
    for entry in entries:
        name = entry.name.encode("utf-8", "backslashreplace")
        if entry.begin != at:
            source.corrupt(entry.begin, f"its bytes overlap or leave a hole; {at} is next", name)
        at = entry.end
    if at != source.size:
        source.corrupt(at, f"the header tells of {at} bytes, and the file has {source.size}")
    return Header(metadata, entries)


def check(source: Source) -> int:
    """Checks header and, where ckptd wrote one, the checksum; returns how many tensors there are.

    Raises CorruptCheckpointError.
    """
    count = len(read_header(source).entries)
    start = 8 + len(_MARK)
    digits_end = start + len(_NO_CHECKSUM)
    if source.size < digits_end:
        return count
    mark = bytes(source.read(8, len(_MARK)))
    digits = bytes(source.read(start, len(_NO_CHECKSUM)))
    differing = sum(one != other for one, other in zip(mark, _MARK))
    if differing > _FEW_BYTES or (not differing and digits == _NO_CHECKSUM):
        return count
    crc = crc32(_NO_CHECKSUM, crc32(source.read(0, start)))
    at = digits_end
    while at < source.size:
        size = min(_CHUNK_BYTES, source.size - at)
        crc = crc32(source.read(at, size), crc)
        at += size
    if differing or digits != b"%08x" % crc:
        said = digits.decode("ascii", "backslashreplace")
        source.corrupt(8, f"CRC-32 of the file is {crc:08x}, its header says {said}")
    return count


def load(memory: torch.UntypedStorage, source: Source, map_location: Any) -> Any:
    """The state in a file that is whole in `memory`, which `source` reads.

    Nested as it was saved; a file that is not of ckptd gives a dict by name. Tensors that were one
    object, or one memory, are one object. map_location: as of torch.load. Raises
    CorruptCheckpointError.
    """
    header = read_header(source)
    place = _placer(map_location)
    leaves = {entry.name: _tensor(entry, memory, place) for entry in header.entries}
    told = header.metadata
    try:
        if "ckptd.aliases" in told:
            aliases = json.loads(told["ckptd.aliases"])
        else:
            aliases = {key: kept for key, kept in told.items() if kept in leaves and key not in leaves}
        leaves.update({alias: leaves[kept] for alias, kept in aliases.items()})
        leaves.update(json.loads(told.get("ckptd.values", "{}")))
        if "ckptd.tree" in told:
            return named.nest(told["ckptd.tree"], leaves)
        return named.split(leaves) if _OURS in told else leaves
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        source.corrupt(8, f"__metadata__ does not tell how its tensors nest: {error!r:.300}")


def _entry(name: str, told: Dict[str, Any], data: int) -> Entry:
    dtype = getattr(torch, _TORCH_NAMES.get(told["dtype"], told["dtype"]), None)
    _expect(isinstance(dtype, torch.dtype), f"has the dtype {told['dtype']!r}", name)
    assert isinstance(dtype, torch.dtype)
    shape, (begin, end) = told["shape"], told["data_offsets"]
    _expect(all(type(n) is int and n >= 0 for n in [*shape, begin, end]), "has no sizes", name)
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    _expect(end - begin == size, f"has {end - begin} bytes, and dtype and shape {size}", name)
    return Entry(name, dtype, shape, data + begin, data + end)


def _expect(holds: bool, why: str, name: str) -> None:
    if not holds:
        raise ValueError(f"{name} {why}")


_Place = Callable[[torch.UntypedStorage], torch.UntypedStorage]


def _placer(map_location: Any) -> _Place:
    """What takes a storage to where map_location wants it."""
    if callable(map_location):

        def ask(storage: torch.UntypedStorage) -> torch.UntypedStorage:
            found: Optional[Any] = map_location(storage, "cpu")
            if found is None:
                return storage
            untyped: torch.UntypedStorage = getattr(found, "_untyped_storage", found)
            return untyped

        return ask
    location = map_location.get("cpu") if isinstance(map_location, dict) else map_location
    device = torch.device("cpu" if location is None else location)

    def move(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if device.type == "cpu":
            return storage
        size = storage.nbytes()
        view = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
        return view.to(device).untyped_storage()

    return move


def _tensor(entry: Entry, memory: torch.UntypedStorage, place: _Place) -> torch.Tensor:
    """Has a storage of its own in `memory`, so that to save it again saves no more than itself."""
    if entry.begin == entry.end:
        part = torch.empty(0, dtype=torch.uint8).untyped_storage()
    else:
        part = memory[entry.begin : entry.end]
        if part.data_ptr() % torch.empty(0, dtype=entry.dtype).element_size():
            part = part.clone()
    part = place(part)
    strides = [math.prod(max(1, n) for n in entry.shape[at + 1 :]) for at in range(len(entry.shape))]
    empty = torch.empty(0, dtype=entry.dtype, device=part.device)
    return empty.set_(part, 0, entry.shape, strides)
