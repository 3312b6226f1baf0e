"""The directory of a zip file, as far as torch has one: where each record lies, and its checksum.

Nothing in the file is believed that another part of it denies.
"""

from __future__ import annotations

import errno
import struct
from typing import Any, Callable, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from .errors import CorruptCheckpointError

MAGIC = b"PK\3\4"  # what a file begins with
HEADER = struct.Struct("<IHHHIIIIHH")
STORED, DEFLATED = 0, 8
MAX32 = 0xFFFFFFFF

_ENTRY = struct.Struct("<IHHHHIIIIHHHHHII")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_MAX16 = 0xFFFF

_UNREADABLE_FLAGS = 0x2061  # encrypted, patched, or with a hidden directory
_FOLDER = 0x10  # a reader gives a folder no bytes, whatever its size says


class Source:
    """The bytes of one file."""

    def __init__(self, path: str, size: int, read: Callable[[int, int], Any]) -> None:
        self.path = path
        self.size = size
        self._read = read

    def read(self, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes; the file is corrupt where they cannot be had."""
        parts: List[memoryview] = []
        while size > 0:
            try:
                part = memoryview(self._read(offset, size))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.corrupt(offset, f"the storage cannot read it: {error.strerror}")
            if not part:
                self.corrupt(offset, "the file was cut while it was read")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def corrupt(self, offset: int, why: str, record: Optional[bytes] = None) -> NoReturn:
        """Raises the error. `why` says what was found, and what was expected."""
        name = None if record is None else record.decode("utf-8", "backslashreplace")
        of_record = "" if name is None else f", record {name!r}"
        raise CorruptCheckpointError(
            f"{self.path}: is corrupt at byte {offset}{of_record}: {why}. Load an older "
            "checkpoint: ckptd.latest finds the newest one that is whole.",
            path=self.path,
            record=name,
            offset=offset,
        )


class Record(NamedTuple):
    """One entry of the directory; `end` is where the next record or the directory begins."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored_bytes: int
    size_bytes: int
    offset: int
    end: int = 0


def read_directory(source: Source) -> List[Record]:
    """The records in the order of the file; none overlaps another or the directory.

    Raises CorruptCheckpointError.
    """
    start, size, count = find_directory(source)
    return _in_file_order(source, list(_read_entries(source, start, size, count)), start)


def find_directory(source: Source) -> Tuple[int, int, int]:
    """Offset, size and number of entries, of which all end records agree."""
    tail_at = max(0, source.size - _END.size - _MAX16)
    tail = bytes(source.read(tail_at, source.size - tail_at))
    found = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if found < 0:
        source.corrupt(source.size, "the file lacks its end: it was truncated, or never finished")
    at = tail_at + found
    _, disk, start_disk, here, count, size, start, comment = _END.unpack_from(tail, found)
    if at + _END.size + comment != source.size:
        trailing = source.size - at - _END.size
        source.corrupt(at, f"{trailing} bytes follow the end record, which tells of {comment}")
    if disk or start_disk or here != count:
        source.corrupt(at, "the end record tells of an archive in several parts")
    end = at
    if at >= _LOCATOR.size:
        locator = source.read(at - _LOCATOR.size, _LOCATOR.size)
        if bytes(locator[:4]) == b"PK\6\7":
            end, (count, size, start) = _read_end64(source, locator, at, (count, size, start))
    if start + size != end:
        source.corrupt(
            end, f"the directory is said to be at {start} to {start + size}, not to end here"
        )
    if count * _ENTRY.size > size:
        source.corrupt(end, f"{count} records are said to be in a directory of {size} bytes")
    return start, size, count


def _read_end64(
    source: Source, locator: memoryview, end_at: int, plain: Tuple[int, int, int]
) -> Tuple[int, Tuple[int, int, int]]:
    """Offset of the zip64 end record, and its (count, size, start), which `plain` must not deny."""
    locator_at = end_at - _LOCATOR.size
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks != 1 or at + _END64.size > locator_at:
        source.corrupt(locator_at, f"the zip64 locator leads to disk {disk} of {disks}, byte {at}")
    fields = _END64.unpack(source.read(at, _END64.size))
    magic, length, _, _, disk, start_disk, here, count, size, start = fields
    if magic != 0x06064B50 or at + 12 + length != locator_at:
        source.corrupt(at, "there is no zip64 end record where its locator leads to")
    if disk or start_disk or here != count:
        source.corrupt(at, "the zip64 end record tells of an archive in several parts")
    full = (count, size, start)
    for value, short, most in zip(full, plain, (_MAX16, MAX32, MAX32)):
        if short not in (value, most):
            source.corrupt(end_at, f"the end record says {short}, the zip64 end record {value}")
    return at, full


def _read_entries(source: Source, start: int, size: int, count: int) -> Iterator[Record]:
    directory = bytes(source.read(start, size))
    names = set()
    at = 0
    for _ in range(count):
        if size - at < _ENTRY.size or directory[at : at + 4] != b"PK\1\2":
            source.corrupt(start + at, f"there is no entry of the directory, which has {count}")
        fields = _ENTRY.unpack_from(directory, at)
        flags, method, crc, stored, whole = fields[3], fields[4], *fields[6:9]
        name_end = at + _ENTRY.size + fields[9]
        extra_end = name_end + fields[10]
        entry_end = extra_end + fields[11]
        name = directory[at + _ENTRY.size : name_end]
        if entry_end > size:
            source.corrupt(start + at, "the entry reaches beyond the directory")
        extra = directory[name_end:extra_end]
        zip64 = resolve_zip64(extra, [whole, stored, fields[15]])
        if zip64 is None:
            source.corrupt(start + at, "the entry lacks the zip64 field it refers to", name)
        whole, stored, offset = zip64
        unlike_torch = (
            flags & _UNREADABLE_FLAGS
            or method not in (STORED, DEFLATED)
            or (method == STORED and stored != whole)
            or (whole and not stored)
            or fields[12]
            or (whole and (fields[14] & _FOLDER or name.endswith(b"/")))
        )
        if unlike_torch:
            source.corrupt(start + at, "the entry is of a kind that torch cannot read", name)
        if offset >= start:
            beyond = f"the entry leads to byte {offset}, behind all records"
            source.corrupt(start + at, beyond, name)
        if name in names:
            source.corrupt(start + at, "the directory has two entries of this name", name)
        names.add(name)
        yield Record(name, flags, method, crc, stored, whole, offset)
        at = entry_end
    if at != size:
        source.corrupt(start + at, f"{size - at} bytes follow the directory's {count} entries")


def resolve_zip64(extra: bytes, values: List[int]) -> Optional[List[int]]:
    """`values` with those that do not fit 32 bits taken from the zip64 field; None if it lacks."""
    if MAX32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            if len(field) < max(length, 8 * values.count(MAX32)):
                return None
            large = iter(struct.unpack_from(f"<{length // 8}Q", field))
            return [next(large) if value == MAX32 else value for value in values]
        at += 4 + length
    return None


def data_offset(source: Source, record: Record) -> int:
    """Where the bytes of a record begin, by its local header. Raises CorruptCheckpointError."""
    header = HEADER.unpack(source.read(record.offset, HEADER.size))
    start: int = record.offset + HEADER.size + header[8] + header[9]
    if header[0] != int.from_bytes(MAGIC, "little") or start + record.stored_bytes > record.end:
        source.corrupt(record.offset, "there is no local header for its bytes", record.name)
    return start


def _in_file_order(source: Source, records: List[Record], start: int) -> List[Record]:
    """The records by offset, each with the end of the space that it has in the file."""
    ordered = sorted(records, key=lambda record: record.offset)
    ends = [record.offset for record in ordered[1:]] + [start]
    placed = []
    for record, end in zip(ordered, ends):
        if record.offset + HEADER.size + record.stored_bytes > end:
            source.corrupt(
                record.offset,
                f"its {record.stored_bytes} bytes reach into what follows at {end}",
                record.name,
            )
        placed.append(record._replace(end=end))
    return placed
