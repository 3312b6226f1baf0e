"""Memory that the daemon lends to a load: it has the checkpoint, or is filled with it here.

The process that loads maps it shared and writable, for a copy-on-write mapping pays a fresh page for
each page that is written to, and nobody else may: the daemon has taken it out of its pool. A shared
flock on the file says that it is in use. The lock goes with the mapping, however that goes.

Memory that is mapped shared stays shared over fork. A child maps its ranges privately as it starts,
so that it never writes into its parent's tensors.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch

from . import safetensors_file, unpickling
from .errors import CorruptCheckpointError
from .shm import (
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ_WRITE,
    Mapping,
    MappingCache,
    NotSharedError,
    libc,
    populate,
)
from .v1 import checkpoint_pb2 as pb
from .verify import check_source
from .zip_directory import STORED, Record, Source, read_directory

_PAGE = 4096
# Large enough for the device, and so small that checksums follow soon.
_CHUNK_BYTES = 8 << 20
_READERS = 2
_TAIL_CHUNKS = 2

# File descriptor and length of what is mapped, by its address.
_mapped: Dict[int, Tuple[int, int]] = {}
_torch_from_file = torch.UntypedStorage.from_file
# What torch.load takes for the contents of a file, by the name of that, while it does.
_contents: Dict[str, torch.UntypedStorage] = {}
_patch_lock = threading.Lock()


class LentMemory:
    """A checkpoint file in memory of our own. The memory lives as long as a tensor that is in it.

    file: a descriptor of the file on storage, which is then to be read into it; None where the
    memory has the file already, checksummed by the daemon. Not needed after `load`.
    """

    def __init__(
        self, image: pb.Image, mappings: MappingCache, file: Optional[int] = None
    ) -> None:
        self._size = image.size_bytes
        self._file = file
        mapping = mappings.take(image)
        try:
            fd = mapping.make_lent()
        except OSError as error:
            mapping.close()
            raise NotSharedError(f"{image.path}: cannot be locked: {error.strerror}") from error
        self._name = f"/proc/self/fd/{fd}"
        self._address = mapping.address
        self._populated = mapping.populated_bytes
        memory = (ctypes.c_ubyte * self._size).from_address(self._address)
        self._storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
        _mapped[self._address] = (fd, self._size)
        # Not at exit: tensors may be used until the very end.
        weakref.finalize(memory, _unmap, mapping).atexit = False

    def check(self, path: str) -> None:
        """Checks the file, unless the daemon has. Raises as verify.check; `path` is for messages."""
        if self._file is not None:
            with self._filling(self._file) as filling:
                check_source(Source(path, self._size, filling.read))
            self._file = None

    def load(self, map_location: Any, weights_only: Optional[bool]) -> Any:
        """What torch.load gives for the file, its tensors in this memory as far as they stay here."""
        if self._file is not None:
            with self._filling(self._file):
                pass
            self._file = None
        if safetensors_file.is_safetensors(self._source()):
            return safetensors_file.load(self._storage, self._source(), map_location)
        arguments = {"map_location": map_location, "weights_only": weights_only}
        try:
            records = read_directory(self._source())
        except CorruptCheckpointError:
            records = []
        with suppress(unpickling.NotPlainError):
            return unpickling.load(self._storage, self._source(), records, map_location)
        if not _is_mappable(records):
            return torch.load(self._name, **arguments)
        with _contents_of(self._name, self._storage):
            # Page tables are left to whoever writes: to fill them behind the load costs that more.
            return torch.load(self._name, mmap=True, **arguments)

    def _filling(self, file: int) -> _Filling:
        return _Filling(file, self._address, self._size, self._populated)

    def _source(self) -> Source:
        content = _bytes_at(self._address, self._size)
        return Source(self._name, self._size, lambda at, n: content[at : at + n])


def _is_mappable(records: List[Record]) -> bool:
    """Whether it is a zip file without compressed records.

    torch.load inflates those, but not where it maps the file: it takes them for the weights.
    """
    return bool(records) and all(record.method == STORED for record in records)


def _bytes_at(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def _unmap(mapping: Mapping) -> None:
    # Known to a child of fork until right before it is gone.
    del _mapped[mapping.address]
    mapping.close()


def _map_privately() -> None:
    for address, (fd, size) in list(_mapped.items()):
        # The child's copy is of what it writes to, which is not known ahead.
        flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
        if libc.mmap(address, size, PROT_READ_WRITE, flags, fd, 0) != address:
            os.abort()  # rather than write into the parent's tensors


os.register_at_fork(after_in_child=_map_privately)


@contextmanager
def _contents_of(name: str, storage: torch.UntypedStorage) -> Iterator[None]:
    """Has torch.load(name, mmap=True) take `storage` for its own mapping of the file.

    Its own is copy-on-write. It can be told to map shared, but only for all threads at once, whose
    files that would write to.
    """
    with _patch_lock:
        _contents[name] = storage
        torch.UntypedStorage.from_file = staticmethod(_from_file)  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _patch_lock:
            del _contents[name]
            if not _contents:
                del torch.UntypedStorage.from_file


def _from_file(filename: Any, *arguments: Any, **named: Any) -> Any:
    found = _contents.get(filename)
    return _torch_from_file(filename, *arguments, **named) if found is None else found


class _Filling:
    """Reads a file into memory, its end first and then in order, ahead of whoever looks at it.

    populated: so many bytes of the memory have their page tables.

    The file's descriptor is left open. Leaving the context waits for the whole; raises OSError.
    """

    def __init__(self, file: int, address: int, size: int, populated: int) -> None:
        self._address = address
        self._size = size
        self._populated = populated
        self._content = _bytes_at(address, size)
        self._fd = _reopen(file)
        self._pool = ThreadPoolExecutor(_READERS, "ckptd-read")
        self._chunks: List[Future[None]] = []

    def __enter__(self) -> _Filling:
        starts = range(0, self._size, _CHUNK_BYTES)
        # A zip file has its directory at the end, without which nothing can be checked.
        tail = [self._pool.submit(self._fetch, at) for at in starts[-_TAIL_CHUNKS:]]
        self._chunks = [self._pool.submit(self._fetch, at) for at in starts[:-_TAIL_CHUNKS]] + tail
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                for chunk in self._chunks:
                    chunk.result()
        finally:
            for chunk in self._chunks:
                chunk.cancel()
            self._pool.shutdown()
            os.close(self._fd)

    def read(self, offset: int, size: int) -> memoryview:
        """These bytes of the file, once they are there. Raises OSError."""
        for chunk in self._chunks[offset // _CHUNK_BYTES : (offset + size - 1) // _CHUNK_BYTES + 1]:
            chunk.result()
        return self._content[offset : offset + size]

    def _fetch(self, start: int) -> None:
        end = min(start + _CHUNK_BYTES, self._size)
        if end > self._populated:
            # Else a direct read makes page tables one page at a time, while the device waits.
            populate(self._address + start, end - start)
        while start < end:
            # A direct read is of whole blocks; the memory has whole pages.
            room = -(-(end - start) // _PAGE) * _PAGE
            buffer = (ctypes.c_char * room).from_address(self._address + start)
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            try:
                count = os.preadv(self._fd, [buffer], start)
            except OSError as error:
                # The flags are of before: another thread may have been refused at the same time.
                if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                    raise
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
                continue
            if count == 0:
                raise OSError(errno.EIO, "the file was cut while it was read")
            start += count


def _reopen(file: int) -> int:
    """A descriptor of the same file that passes by the page cache, if the file system has that."""
    name = f"/proc/self/fd/{file}"
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
