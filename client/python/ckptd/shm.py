"""Copies storages into staging images through shared memory.

An image is a file in the daemon's tmpfs pool. Its pages exist before we see it, but a new mapping
has no page-table entries yet: they are filled ahead (reserve.py), or by each thread for what it
copies to, once, and the mapping is kept for the next saves. Mappings are not inherited over fork,
so that a child can never write into an image of its parent.
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
# Address space, no memory.
_MIN_ROOM_BYTES = 4 << 20
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
    """One image, mapped shared and writable. Not for use in another process.

    It is mapped with some room behind its end, so that an image which grows a little between saves
    stays where it is. Only a save that has the image may read or write, and only within its length.
    """

    def __init__(self, image: pb.Image) -> None:
        self.inode = image.inode
        try:
            self._fd = os.open(image.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotSharedError(f"{image.path}: {error.strerror}") from error
        self._length = image.size_bytes + max(image.size_bytes // 8, _MIN_ROOM_BYTES)
        self.users = 0
        #: So many bytes from the start on have their page tables filled.
        self.populated_bytes = 0
        try:
            self.check(image)
            address = _libc.mmap(None, self._length, _PROT_READ_WRITE, _MAP_SHARED, self._fd, 0)
            if address == _MAP_FAILED:
                raise NotSharedError(f"{image.path}: {os.strerror(ctypes.get_errno())}")
        except NotSharedError:
            self.forget()
            raise
        self.address: int = address
        _libc.madvise(address, self._length, _MADV_DONTFORK)

    def check(self, image: pb.Image) -> None:
        """Raises NotSharedError unless this is of `image`, with the length that it should have."""
        found = os.fstat(self._fd)
        if (found.st_ino, found.st_size) != (image.inode, image.size_bytes):
            raise NotSharedError(f"{image.path}: is not the daemon's file of that name")

    def has_room_for(self, image: pb.Image) -> bool:
        """Whether all of `image` is within what is mapped."""
        return image.size_bytes <= self._length

    def is_alive(self) -> bool:
        """Whether the daemon still has the image; otherwise the mapping only holds memory."""
        return os.fstat(self._fd).st_nlink > 0

    def populate(self, start: int, end: int) -> bool:
        """Fills the page tables of a range; returns whether it did. Changes no byte.

        Where the image was cut meanwhile, or on an old kernel, it fails and does no harm.
        """
        start -= start % mmap.PAGESIZE
        size = end - start
        return size <= 0 or 0 == _libc.madvise(self.address + start, size, _MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Unmaps. The addresses must not be used any more."""
        _libc.munmap(self.address, self._length)
        self.forget()

    def forget(self) -> None:
        """Lets go of the file. In a forked child, which has no mapping, that is all there is."""
        os.close(self._fd)


class MappingCache:
    """Mappings by image, kept across saves. Thread-safe; of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: Dict[Tuple[int, int], Mapping] = {}

    @contextmanager
    def hold(self, image: pb.Image) -> Iterator[Mapping]:
        """The mapping of `image`, which a save of the caller's has. Raises NotSharedError."""
        with self._kept(image) as mapping:
            mapping.check(image)
            mapping.populated_bytes = min(mapping.populated_bytes, image.size_bytes)
            yield mapping

    @contextmanager
    def hold_ahead(self, image: pb.Image) -> Iterator[Mapping]:
        """The mapping of an image that is nobody's yet, only to be populated.

        Raises NotSharedError where it is not what it was when the daemon told of it.
        """
        with self._kept(image) as mapping:
            yield mapping

    @contextmanager
    def _kept(self, image: pb.Image) -> Iterator[Mapping]:
        key = (image.id, image.inode)
        with self._lock:
            self._drop_unused()
            mapping = self._mappings.pop(key, None)
            if mapping is not None and not mapping.has_room_for(image):
                if mapping.users == 0:
                    mapping.close()
                mapping = None
            if mapping is None:
                mapping = Mapping(image)
            self._mappings[key] = mapping
            mapping.users += 1
        try:
            yield mapping
        finally:
            with self._lock:
                mapping.users -= 1
                if mapping.users == 0 and self._mappings.get(key) is not mapping:
                    mapping.close()

    def close(self) -> None:
        """Unmaps all that is not held."""
        with self._lock:
            self._drop_unused(keep=0)

    def forget(self) -> None:
        """In a forked child: keeps no memory of the daemon's from being freed."""
        for mapping in self._mappings.values():
            mapping.forget()

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
        self.threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)
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
        self.run([_copier_of(share, mapping) for share in self._shares(pieces)])
        mapping.populated_bytes = response.image.size_bytes

    def _shares(self, pieces: List[_Piece]) -> List[List[_Piece]]:
        """Deals `pieces` out in runs of equal bytes, cutting large ones."""
        total = sum(piece[2] for piece in pieces)
        count = max(1, min(self.threads, total // _MIN_BYTES_PER_THREAD))
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

    def run(self, tasks: List[Callable[[], None]]) -> None:
        """Runs as many tasks as there are threads, at once; returns when all have ended."""
        if len(tasks) == 1:
            tasks[0]()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, "ckptd-copy")
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


def _copier_of(pieces: List[_Piece], mapping: Mapping) -> Callable[[], None]:
    def run() -> None:
        if pieces:
            start = max(pieces[0][0] - mapping.address, mapping.populated_bytes)
            mapping.populate(start, pieces[-1][0] + pieces[-1][2] - mapping.address)
        memmove = ctypes.memmove  # gives up the GIL
        for to, source, size in pieces:
            memmove(to, source, size)

    return run


def device_bytes(storage: torch.UntypedStorage, size_bytes: int) -> torch.Tensor:
    """The first bytes of a storage as a tensor uint8[size_bytes] on its device; no copy."""
    view = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return view.set_(storage, 0, (size_bytes,), (1,))


def _copy_from_device(storage: torch.UntypedStorage, address: int, size_bytes: int) -> None:
    target = torch.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype=torch.uint8)
    target.copy_(device_bytes(storage, size_bytes))
