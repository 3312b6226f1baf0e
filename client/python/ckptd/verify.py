"""Checks a torch file whole: its structure, and the CRC-32 of every record.

torch.load itself compares no checksum. What is read here is what it would read: the directory at
the end of the file tells names, sizes and checksums, and a record's bytes lie behind its local
header. Not compared is what no reader looks at: time stamps, padding, data descriptors.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator, List, NamedTuple, NoReturn, Optional, Union

from . import safetensors_file
from .checksum import crc32
from .errors import CheckpointError, CorruptCheckpointError
from .names import PathLike
from .zip_directory import (
    HEADER,
    MAGIC,
    MAX32,
    STORED,
    Record,
    Source,
    find_directory,
    read_directory,
    resolve_zip64,
)

_HAS_DESCRIPTOR = 0x0008

# Records are read by that many bytes at once, small ones together.
_CHUNK_BYTES = 1 << 20
_MAX_THREADS = 4


class Checked(NamedTuple):
    """What was found to be whole."""

    records: int
    bytes: int
    has_pickle: bool  # whether there is a data.pkl, so that torch.load may read it


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
            return check_source(Source(name, len(content), lambda at, n: content[at : at + n]))
    if hasattr(file, "fileno"):
        file = file.fileno()
    if isinstance(file, int):
        return check_source(_of_descriptor(file, name))
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return check_source(_of_descriptor(fd, name))
    finally:
        os.close(fd)


def _of_descriptor(fd: int, path: str) -> Source:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        why = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
        raise OSError(why, "is not a file", path)
    return Source(path, info.st_size, lambda at, n: os.pread(fd, n, at))


def check_source(source: Source) -> Optional[Checked]:
    """The same for what `source` reads."""
    if source.size == 0:
        source.corrupt(0, "the file is empty")
    if safetensors_file.is_safetensors(source):
        return Checked(safetensors_file.check(source), source.size, has_pickle=False)
    head = bytes(source.read(0, min(len(MAGIC), source.size)))
    if head != MAGIC:
        _check_is_no_zip(source, head)
        return None
    records = read_directory(source)
    unchecked = all(record.crc == 0 for record in records) and any(r.size_bytes for r in records)
    _check_records(source, records, not unchecked)
    if unchecked:  # As torch.serialization.set_crc32_options(False) has it.
        return None
    has_pickle = any(record.name.endswith(b"/data.pkl") for record in records)
    return Checked(len(records), source.size, has_pickle)


def _check_is_no_zip(source: Source, head: bytes) -> None:
    """Raises for a zip file whose beginning is damaged, and for what can be nothing else either."""
    if MAGIC.startswith(head):
        source.corrupt(0, f"the file ends after {len(head)} bytes")
    if not any(head):
        source.corrupt(0, "the file begins with zeros: its bytes never reached the storage")
    try:
        find_directory(source)
    except CorruptCheckpointError:
        return
    source.corrupt(0, f"the file begins with {head!r} and ends as a zip file, which begin PK\\3\\4")


# ---- The records


def _check_records(source: Source, records: List[Record], with_crc: bool) -> None:
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


def _batches(records: List[Record]) -> Iterator[List[Record]]:
    """Neighbours that can be read at once, and larger records alone."""
    batch: List[Record] = []
    for record in records:
        if batch and record.end - batch[0].offset > _CHUNK_BYTES:
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def _check_batch(source: Source, batch: List[Record], with_crc: bool) -> None:
    first, last = batch[0], batch[-1]
    length = min(last.end - first.offset, _CHUNK_BYTES)
    content = source.read(first.offset, length)
    for record in batch:
        at = record.offset - first.offset
        payload = at + _check_header(source, record, content[at:])
        if with_crc:
            _check_crc(source, record, content[payload:], first.offset + payload)


def _check_header(source: Source, record: Record, content: memoryview) -> int:
    """Returns how many bytes the local header has. `content` begins with it and holds it all."""

    def corrupt(why: str) -> NoReturn:
        source.corrupt(record.offset, why, record.name)

    if content[:4] != MAGIC:
        corrupt(f"there is no local header but {bytes(content[:4])!r}")
    fields = HEADER.unpack_from(content)
    flags, method, crc, stored, whole, name_bytes, extra_bytes = *fields[2:4], *fields[5:]
    length: int = HEADER.size + name_bytes + extra_bytes
    if record.offset + length + record.stored_bytes > record.end:
        corrupt(f"header and bytes reach into what follows at {record.end}")
    name_end = HEADER.size + name_bytes
    name = bytes(content[HEADER.size : name_end])
    if name != record.name:
        corrupt(f"the local header names {name.decode('utf-8', 'backslashreplace')!r}")
    if (flags, method) != (record.flags, record.method):
        wanted = f"{record.flags:#x}, {record.method}"
        corrupt(f"flags and method are {flags:#x}, {method}, not {wanted}")
    told_later = (0,) if flags & _HAS_DESCRIPTOR else ()
    sizes = [whole, stored]
    if MAX32 in sizes and not told_later:
        large = resolve_zip64(bytes(content[name_end:length]), sizes)
        if large is None:
            corrupt("the local header lacks the zip64 field it refers to")
        sizes = large
    elif MAX32 in sizes:
        sizes = [0, 0]
    in_directory = (record.crc, record.size_bytes, record.stored_bytes)
    for found, expected in zip((crc, *sizes), in_directory):
        if found != expected and found not in told_later:
            corrupt(f"the local header says {found:#x}, the directory {expected:#x}")
    return length


def _check_crc(source: Source, record: Record, content: memoryview, at: int) -> None:
    """`content` holds the first bytes of the record, or all, and lies at `at` in the file."""
    stored = _stored(source, record, content, at)
    crc = size = 0
    for piece in stored if record.method == STORED else _inflated(source, record, stored):
        crc = crc32(piece, crc)
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


def _stored(source: Source, record: Record, content: Any, at: int) -> Iterator[Any]:
    end = at + record.stored_bytes
    while at < end:
        piece = content[: end - at] or source.read(at, min(end - at, _CHUNK_BYTES))
        content = b""
        at += len(piece)
        yield piece


def _inflated(source: Source, record: Record, stored: Iterator[Any]) -> Iterator[bytes]:
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
