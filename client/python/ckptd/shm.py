"""Copies storages into staging images through shared memory.

An image is a file in the daemon's tmpfs pool. Its pages exist before we see it, but a new mapping
has no page-table entries yet: each thread populates what it copies to, once, and the mapping is
kept for the next saves. Mappings are not inherited over fork, so that a child can never write into
an image of its parent.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import torch

from .capture import Captured
from .v1 import checkpoint_pb2 as pb

_PROT_READ_WRITE = 0x1 | 0x2
_MAP_SHARED = 0x1
_MADV_DONTFORK = 10
_MADV_POPULATE_WRITE = 23  # Linux 5.14; older kernels fault the pages in during the copy
_MAP_FAILED = ctypes.c_void_p(-1).value
_MAX_THREADS = 4
_MAX_MAPPINGS = 4
# Below this a second thread costs more than it copies.
_MIN_BYTES_PER_THREAD = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# (destination, source, bytes), addresses in this process.
_Piece = Tuple[int, int, int]


class NotSharedError(Exception):
    """The image cannot be reached from this process; WriteSave is the way."""


class Mapping:
    """One image, mapped shared and writable. Not for use in another process."""

    def __init__(self, image: pb.Image) -> None:
        self.path = image.path
        self.inode = image.inode
        self.size = image.size_bytes
        try:
            fd = os.open(image.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotSharedError(f"{image.path}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if found.st_ino != image.inode or found.st_size != image.size_bytes:
                raise NotSharedError(f"{image.path}: is not the daemon's file of that name")
            address = _libc.mmap(None, self.size, _PROT_READ_WRITE, _MAP_SHARED, fd, 0)
        finally:
            os.close(fd)
        if address == _MAP_FAILED:
            raise NotSharedError(f"{image.path}: {os.strerror(ctypes.get_errno())}")
        self.address: int = address
        self.is_populated = False
        self.users = 0
        _libc.madvise(address, self.size, _MADV_DONTFORK)

    def is_of(self, image: pb.Image) -> bool:
        """Whether this maps exactly that image as it is now."""
        return (self.path, self.inode, self.size) == (image.path, image.inode, image.size_bytes)

    def is_alive(self) -> bool:
        """Whether the daemon still has the image; otherwise the mapping only holds memory."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == self.inode
        except OSError:
            return False

    def close(self) -> None:
        """Unmaps. The addresses must not be used any more."""
        _libc.munmap(self.address, self.size)


class MappingCache:
    """Mappings by image, kept across saves. Thread-safe; of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: Dict[Tuple[int, int], Mapping] = {}

    @contextmanager
    def hold(self, image: pb.Image) -> Iterator[Mapping]:
        """The mapping of `image`, which a save of the caller's has. Raises NotSharedError."""
        key = (image.id, image.inode)
        with self._lock:
            self._drop_unused()
            mapping = self._mappings.pop(key, None)
            if mapping is None or not mapping.is_of(image):
                if mapping is not None:
                    mapping.close()
                mapping = Mapping(image)
            self._mappings[key] = mapping
            mapping.users += 1
        try:
            yield mapping
        finally:
            with self._lock:
                mapping.users -= 1

    def close(self) -> None:
        """Unmaps all that is not held."""
        with self._lock:
            self._drop_unused(keep=0)

    def _drop_unused(self, keep: int = _MAX_MAPPINGS) -> None:
        """Unmaps what the daemon has given up, and the longest unused beyond `keep`."""
        unused = [item for item in self._mappings.items() if item[1].users == 0]
        excess = len(self._mappings) - keep
        for index, (key, mapping) in enumerate(unused):
            if index < excess or not mapping.is_alive():
                del self._mappings[key]
                mapping.close()


class Copier:
    """Copies with a few threads that stay. Thread-safe; of one process."""

    def __init__(self) -> None:
        self._threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)
        self._pool: Optional[ThreadPoolExecutor] = None
        self._lock = threading.Lock()

    def copy(self, captured: Captured, response: pb.BeginSaveResponse, mapping: Mapping) -> None:
        """Copies pickle and storages to their offsets in the image, which the caller holds.

        Returns, or raises, when no thread touches either side any more.
        """
        base = mapping.address
        source = (ctypes.c_char * len(captured.pickle)).from_buffer(captured.pickle)
        ctypes.memmove(base + response.object_offset, source, len(captured.pickle))
        pieces: List[_Piece] = []
        for record, offset in zip(captured.records, response.tensor_offsets):
            if record.size_bytes == 0:
                continue
            if record.storage.device.type == "cpu":
                pieces.append((base + offset, record.storage.data_ptr(), record.size_bytes))
            else:
                _copy_from_device(record.storage, base + offset, record.size_bytes)
        populate = not mapping.is_populated
        self._run([_copier_of(share, populate) for share in self._shares(pieces)])
        mapping.is_populated = True

    def _shares(self, pieces: List[_Piece]) -> List[List[_Piece]]:
        """Deals `pieces` out in runs of equal bytes, cutting large ones."""
        total = sum(piece[2] for piece in pieces)
        count = max(1, min(self._threads, total // _MIN_BYTES_PER_THREAD))
        if count == 1:
            return [pieces]
        target = -(-total // count)
        shares: List[List[_Piece]] = [[]]
        room = target
        for to, source, size in pieces:
            while size > room:
                shares[-1].append((to, source, room))
                to, source, size = to + room, source + room, size - room
                shares.append([])
                room = target
            shares[-1].append((to, source, size))
            room -= size
        return shares

    def _run(self, tasks: List[Callable[[], None]]) -> None:
        if len(tasks) == 1:
            tasks[0]()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, "ckptd-copy")
            others = [self._pool.submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            _wait_for_all(others)


def _wait_for_all(futures: List[Future[None]]) -> None:
    """Waits even where Ctrl-C comes in between: the image may be another save's afterwards."""
    interrupt: Optional[KeyboardInterrupt] = None
    while not all(future.done() for future in futures):
        try:
            wait(futures)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _copier_of(pieces: List[_Piece], populate: bool) -> Callable[[], None]:
    def run() -> None:
        if populate and pieces:
            _populate(pieces[0][0], pieces[-1][0] + pieces[-1][2])
        memmove = ctypes.memmove  # gives up the GIL
        for to, source, size in pieces:
            memmove(to, source, size)

    return run


def _populate(start: int, end: int) -> None:
    start -= start % mmap.PAGESIZE
    _libc.madvise(start, end - start, _MADV_POPULATE_WRITE)


def device_bytes(storage: torch.UntypedStorage, size_bytes: int) -> torch.Tensor:
    """The first bytes of a storage as a tensor uint8[size_bytes] on its device; no copy."""
    view = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return view.set_(storage, 0, (size_bytes,), (1,))


def _copy_from_device(storage: torch.UntypedStorage, address: int, size_bytes: int) -> None:
    target = torch.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype=torch.uint8)
    target.copy_(device_bytes(storage, size_bytes))
