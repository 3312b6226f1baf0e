"""Checks a torch file whole: its structure, and the CRC-32 of every record.

torch.load itself compares no checksum. What is read here is what it would read: the directory at
the end of the file tells names, sizes and checksums, and a record's bytes lie behind its local
header. Not compared is what no reader looks at: time stamps, padding, data descriptors.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List, NamedTuple, NoReturn, Optional, Tuple, Union

from .errors import CheckpointError, CorruptCheckpointError
from .names import PathLike

_HEADER = struct.Struct("<IHHHIIIIHH")
_ENTRY = struct.Struct("<IHHHHIIIIHHHHHII")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_MAGIC = b"PK\3\4"
_MAX16 = 0xFFFF
_MAX32 = 0xFFFFFFFF

_HAS_DESCRIPTOR = 0x0008
_UNREADABLE_FLAGS = 0x2061  # encrypted, patched, or with a hidden directory
_FOLDER = 0x10  # a reader gives a folder no bytes, whatever its size says
_STORED, _DEFLATED = 0, 8

# Records are read by that many bytes at once, small ones together.
_CHUNK_BYTES = 1 << 20
_MAX_THREADS = 4


class Checked(NamedTuple):
    """What was found to be whole."""

    records: int
    bytes: int
    has_pickle: bool  # whether there is a data.pkl, so that torch.load may read it


class _Record(NamedTuple):
    """One entry of the directory; `end` is where the next record or the directory begins."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored_bytes: int
    size_bytes: int
    offset: int
    end: int = 0


def verify(path: PathLike) -> None:
    """Checks the file at `path`, without a daemon.

    Raises CorruptCheckpointError where it is damaged, CheckpointError ("NOT_VERIFIABLE") where it
    holds no checksums to compare: it is no torch zip file, or was written without them. Raises
    OSError where it cannot be read.
    """
    name = os.fspath(path)
    if check(name, name) is None:
        raise CheckpointError(
            f"{name}: cannot be verified: it is no zip file of torch.save, or was written without "
            "checksums. Load it and save it again to have some.",
            reason="NOT_VERIFIABLE",
            path=str(name),
        )


def check(file: Union[PathLike, int, Any], path: PathLike) -> Optional[Checked]:
    """Checks a path, an open file descriptor, or a BytesIO; `path` is for messages.

    Returns None where there is nothing to compare: see `verify`. The position of `file` is left
    alone. Raises CorruptCheckpointError, OSError.
    """
    name = os.fsdecode(path)
    if hasattr(file, "getbuffer"):
        with file.getbuffer() as content:
            return _check(_Source(name, len(content), lambda at, n: content[at : at + n]))
    if hasattr(file, "fileno"):
        file = file.fileno()
    if isinstance(file, int):
        return _check(_of_descriptor(file, name))
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _check(_of_descriptor(fd, name))
    finally:
        os.close(fd)


def _of_descriptor(fd: int, path: str) -> _Source:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        why = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
        raise OSError(why, "is not a file", path)
    return _Source(path, info.st_size, lambda at, n: os.pread(fd, n, at))


class _Source:
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


def _check(source: _Source) -> Optional[Checked]:
    if source.size == 0:
        source.corrupt(0, "the file is empty")
    head = bytes(source.read(0, min(len(_MAGIC), source.size)))
    if head != _MAGIC:
        _check_is_no_zip(source, head)
        return None
    start, size, count = _find_directory(source)
    records = list(_read_directory(source, start, size, count))
    unchecked = all(record.crc == 0 for record in records) and any(r.size_bytes for r in records)
    _check_records(source, _in_file_order(source, records, start), not unchecked)
    if unchecked:  # As torch.serialization.set_crc32_options(False) has it.
        return None
    has_pickle = any(record.name.endswith(b"/data.pkl") for record in records)
    return Checked(len(records), source.size, has_pickle)


def _check_is_no_zip(source: _Source, head: bytes) -> None:
    """Raises for a zip file whose beginning is damaged, and for what can be nothing else either."""
    if _MAGIC.startswith(head):
        source.corrupt(0, f"the file ends after {len(head)} bytes")
    if not any(head):
        source.corrupt(0, "the file begins with zeros: its bytes never reached the storage")
    try:
        _find_directory(source)
    except CorruptCheckpointError:
        return
    source.corrupt(0, f"the file begins with {head!r} and ends as a zip file, which begin PK\\3\\4")


# ---- The end and the directory


def _find_directory(source: _Source) -> Tuple[int, int, int]:
    """Offset, size and number of entries, of which all end records agree."""
    tail_at = max(0, source.size - _END.size - _MAX16)
    tail = bytes(source.read(tail_at, source.size - tail_at))
    found = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + len(_MAGIC))
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
        if locator[:4] == b"PK\6\7":
            end, (count, size, start) = _read_end64(source, locator, at, (count, size, start))
    if start + size != end:
        source.corrupt(
            end, f"the directory is said to be at {start} to {start + size}, not to end here"
        )
    if count * _ENTRY.size > size:
        source.corrupt(end, f"{count} records are said to be in a directory of {size} bytes")
    return start, size, count


def _read_end64(
    source: _Source, locator: memoryview, end_at: int, plain: Tuple[int, int, int]
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
    for value, short, most in zip(full, plain, (_MAX16, _MAX32, _MAX32)):
        if short not in (value, most):
            source.corrupt(end_at, f"the end record says {short}, the zip64 end record {value}")
    return at, full


def _read_directory(source: _Source, start: int, size: int, count: int) -> Iterator[_Record]:
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
        zip64 = _zip64(extra, [whole, stored, fields[15]])
        if zip64 is None:
            source.corrupt(start + at, "the entry lacks the zip64 field it refers to", name)
        whole, stored, offset = zip64
        unlike_torch = (
            flags & _UNREADABLE_FLAGS
            or method not in (_STORED, _DEFLATED)
            or (method == _STORED and stored != whole)
            or (whole and not stored)
            or fields[12]
            or (whole and (fields[14] & _FOLDER or name.endswith(b"/")))
        )
        if unlike_torch:
            source.corrupt(start + at, "the entry is of a kind that torch cannot read", name)
        if offset >= start:
            source.corrupt(start + at, f"the entry leads to byte {offset}, behind all records", name)
        if name in names:
            source.corrupt(start + at, "the directory has two entries of this name", name)
        names.add(name)
        yield _Record(name, flags, method, crc, stored, whole, offset)
        at = entry_end
    if at != size:
        source.corrupt(start + at, f"{size - at} bytes follow the directory's {count} entries")


def _zip64(extra: bytes, values: List[int]) -> Optional[List[int]]:
    """`values` with those that do not fit 32 bits taken from the zip64 field; None if it lacks."""
    if _MAX32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            if len(field) < max(length, 8 * values.count(_MAX32)):
                return None
            large = iter(struct.unpack_from(f"<{length // 8}Q", field))
            return [next(large) if value == _MAX32 else value for value in values]
        at += 4 + length
    return None


# ---- The records


def _in_file_order(source: _Source, records: List[_Record], start: int) -> List[_Record]:
    """The records by offset, each with the end of the space that it has in the file."""
    ordered = sorted(records, key=lambda record: record.offset)
    ends = [record.offset for record in ordered[1:]] + [start]
    placed = []
    for record, end in zip(ordered, ends):
        if record.offset + _HEADER.size + record.stored_bytes > end:
            source.corrupt(
                record.offset,
                f"its {record.stored_bytes} bytes reach into what follows at {end}",
                record.name,
            )
        placed.append(record._replace(end=end))
    return placed


def _check_records(source: _Source, records: List[_Record], with_crc: bool) -> None:
    """Checks headers and, if asked for, bytes; the first damage in the file is the one raised."""
    batches = list(_batches(records))
    threads = min(len(batches), len(os.sched_getaffinity(0)), _MAX_THREADS)
    if threads < 2 or not with_crc:
        for batch in batches:
            _check_batch(source, batch, with_crc)
        return
    with ThreadPoolExecutor(threads, "ckptd-verify") as pool:
        futures = [pool.submit(_check_batch, source, batch, with_crc) for batch in batches]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _batches(records: List[_Record]) -> Iterator[List[_Record]]:
    """Neighbours that can be read at once, and larger records alone."""
    batch: List[_Record] = []
    for record in records:
        if batch and record.end - batch[0].offset > _CHUNK_BYTES:
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def _check_batch(source: _Source, batch: List[_Record], with_crc: bool) -> None:
    first, last = batch[0], batch[-1]
    length = min(last.end - first.offset, _CHUNK_BYTES)
    content = source.read(first.offset, length)
    for record in batch:
        at = record.offset - first.offset
        payload = at + _check_header(source, record, content[at:])
        if with_crc:
            _check_crc(source, record, content[payload:], first.offset + payload)


def _check_header(source: _Source, record: _Record, content: memoryview) -> int:
    """Returns how many bytes the local header has. `content` begins with it and holds it all."""

    def corrupt(why: str) -> NoReturn:
        source.corrupt(record.offset, why, record.name)

    if content[:4] != _MAGIC:
        corrupt(f"there is no local header but {bytes(content[:4])!r}")
    fields = _HEADER.unpack_from(content)
    flags, method, crc, stored, whole, name_bytes, extra_bytes = *fields[2:4], *fields[5:]
    length = _HEADER.size + name_bytes + extra_bytes
    if record.offset + length + record.stored_bytes > record.end:
        corrupt(f"header and bytes reach into what follows at {record.end}")
    name_end = _HEADER.size + name_bytes
    name = bytes(content[_HEADER.size : name_end])
    if name != record.name:
        corrupt(f"the local header names {name.decode('utf-8', 'backslashreplace')!r}")
    if (flags, method) != (record.flags, record.method):
        corrupt(f"flags and method are {flags:#x}, {method}, not {record.flags:#x}, {record.method}")
    told_later = (0,) if flags & _HAS_DESCRIPTOR else ()
    sizes = [whole, stored]
    if _MAX32 in sizes and not told_later:
        large = _zip64(bytes(content[name_end:length]), sizes)
        if large is None:
            corrupt("the local header lacks the zip64 field it refers to")
        sizes = large
    elif _MAX32 in sizes:
        sizes = [0, 0]
    wanted = (record.crc, record.size_bytes, record.stored_bytes)
    for found, expected in zip((crc, *sizes), wanted):
        if found != expected and found not in told_later:
            corrupt(f"the local header says {found:#x}, the directory {expected:#x}")
    return length


def _check_crc(source: _Source, record: _Record, content: memoryview, at: int) -> None:
    """`content` holds the first bytes of the record, or all, and lies at `at` in the file."""
    stored = _stored(source, record, content, at)
    crc = size = 0
    for piece in stored if record.method == _STORED else _inflated(source, record, stored):
        crc = zlib.crc32(piece, crc)
        size += len(piece)
        if size > record.size_bytes:
            break
    if size != record.size_bytes:
        source.corrupt(record.offset, f"it is not of {record.size_bytes} bytes", record.name)
    if crc != record.crc:
        source.corrupt(
            record.offset,
            f"CRC-32 of its {size} bytes is {crc:08x}, the directory says {record.crc:08x}",
            record.name,
        )


def _stored(source: _Source, record: _Record, content: Any, at: int) -> Iterator[Any]:
    end = at + record.stored_bytes
    while at < end:
        piece = content[: end - at] or source.read(at, min(end - at, _CHUNK_BYTES))
        content = b""
        at += len(piece)
        yield piece


def _inflated(source: _Source, record: _Record, stored: Iterator[Any]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in stored:
            while piece:
                yield inflate.decompress(piece, _CHUNK_BYTES)
                piece = inflate.unconsumed_tail
        yield inflate.flush()
    except zlib.error as error:
        source.corrupt(record.offset, f"it cannot be inflated: {error}", record.name)
    if not inflate.eof or inflate.unused_data:
        source.corrupt(record.offset, "it ends elsewhere than its compressed data", record.name)
