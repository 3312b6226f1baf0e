"""Staging images in shared memory, mapped.

An image is a file in the daemon's tmpfs pool. Its pages exist before we see it, but a new mapping
has no page-table entries yet: they are filled ahead (reserve.py), or by each thread for what it
copies to, once, and the mapping is kept for the next saves. Where the daemon has gathered the pages
into huge ones, one entry is for 512 of them, as mappings lie in memory as their files do. Mappings
are not inherited over fork, so that a child can never write into an image of its parent.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from contextlib import contextmanager
from typing import Dict, Iterator, Tuple

from . import pinned
from .v1 import checkpoint_pb2 as pb

PROT_READ_WRITE = 0x1 | 0x2
MAP_PRIVATE, MAP_FIXED, MAP_NORESERVE = 0x2, 0x10, 0x4000
_MAP_SHARED, _MAP_ANONYMOUS = 0x1, 0x20
_HUGE_PAGE = 2 << 20
_MADV_DONTFORK, _MADV_DOFORK = 10, 11
_MADV_POPULATE_READ = 22  # Linux 5.14; older kernels fault the pages in during the copy
_MAP_FAILED = ctypes.c_void_p(-1).value
_MAX_MAPPINGS = 4
# Address space, no memory.
_MIN_ROOM_BYTES = 4 << 20

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class NotSharedError(Exception):
    """The image cannot be reached from this process; WriteSave is the way."""


def populate(address: int, size: int) -> bool:
    """Fills the page tables of a mapped range whose pages exist; whether it did.

    By reading: that maps sixteen pages with one fault, where writing maps one.
    """
    return bool(libc.madvise(address, size, _MADV_POPULATE_READ) == 0)


def _map_aligned(fd: int, length: int) -> int:
    """Maps a file shared and writable, from the start of a huge page on; returns the address.

    length: of whole pages. Raises OSError.
    """
    room = length + _HUGE_PAGE
    reserve = MAP_PRIVATE | _MAP_ANONYMOUS | MAP_NORESERVE
    reserved = libc.mmap(None, room, 0, reserve, -1, 0)
    if reserved != _MAP_FAILED:
        before = -reserved % _HUGE_PAGE
        address: int = reserved + before
        flags = _MAP_SHARED | MAP_FIXED
        if libc.mmap(address, length, PROT_READ_WRITE, flags, fd, 0) == address:
            if before > 0:
                libc.munmap(reserved, before)
            libc.munmap(address + length, room - before - length)
            return address
    error = ctypes.get_errno()
    if reserved != _MAP_FAILED:
        libc.munmap(reserved, room)
    raise OSError(error, os.strerror(error))


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
        length = image.size_bytes + max(image.size_bytes // 8, _MIN_ROOM_BYTES)
        self._length = length - length % mmap.PAGESIZE
        self.users = 0
        self.pin = pinned.Pin()
        #: So many bytes from the start on have their page tables filled.
        self.populated_bytes = 0
        try:
            self.check(image)
            self.address = _map_aligned(self._fd, self._length)
        except OSError as error:
            self.forget()
            raise NotSharedError(f"{image.path}: {error.strerror}") from error
        except NotSharedError:
            self.forget()
            raise
        libc.madvise(self.address, self._length, _MADV_DONTFORK)

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
        return size <= 0 or populate(self.address + start, size)

    def make_lent(self) -> int:
        """Makes it memory of this process for as long as it is mapped; returns the descriptor.

        The image says by a shared flock that it is in use. A child of fork has the mapping, too.
        Raises OSError.
        """
        fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.pin.release()
        libc.madvise(self.address, self._length, _MADV_DOFORK)
        return self._fd

    def close(self) -> None:
        """Unmaps. The addresses must not be used any more."""
        self.pin.release()
        libc.munmap(self.address, self._length)
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

    def take(self, image: pb.Image) -> Mapping:
        """The mapping of `image`, with the page tables it has; the caller closes it.

        For an image that the daemon has lent to the caller. Raises NotSharedError.
        """
        with self._lock:
            mapping = self._mappings.get((image.id, image.inode))
            if mapping is not None and mapping.users == 0 and mapping.has_room_for(image):
                del self._mappings[image.id, image.inode]
            else:
                mapping = Mapping(image)
        try:
            mapping.check(image)
        except NotSharedError:
            mapping.close()
            raise
        mapping.populated_bytes = min(mapping.populated_bytes, image.size_bytes)
        return mapping

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
