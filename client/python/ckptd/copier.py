"""Copies storages to their offsets in a mapped image.

Large ones by several threads without the interpreter's lock, past the processor's caches where they
are much (installed.py); small ones one after the other by a loop that is all C, as to give up the
lock for each costs more than to copy it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch

from . import device, installed
from .capture import Captured
from .shm import Mapping
from .v1 import checkpoint_pb2 as pb

_MAX_THREADS = 4
# Below this a second thread costs more than it copies.
_MIN_BYTES_PER_THREAD = 4 << 20
# What a thread takes at a time: the threads end at about one time, whatever holds one of them up.
_CHUNK_BYTES = 4 << 20
# Less stays in the cache, where its checksum finds it.
_MIN_STREAM_BYTES = 4 << 20
# Above this, to give up the lock does not show.
_SMALL_BYTES = 32 << 10
# Other threads get their turn after so many small copies.
_SMALL_BATCH = 4096

_locked_memmove = ctypes.PyDLL(None).memmove
_locked_memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_locked_memmove.restype = None

# (destination, source, bytes), addresses in this process.
_Piece = Tuple[int, int, int]


class Copier:
    """Copies with a few threads that stay. Thread-safe; of one process."""

    def __init__(self) -> None:
        self.threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)
        self._pool: Optional[ThreadPoolExecutor] = None
        self._lock = threading.Lock()

    def copy(
        self,
        captured: Captured,
        response: pb.BeginSaveResponse,
        mapping: Mapping,
        chosen: Optional[Sequence[int]] = None,
        after: Sequence[Any] = (),
    ) -> None:
        """Copies pickle and storages to their offsets in the image, which the caller holds.

        chosen: which storages; all if None. after: of device.mark, where another thread has made
        them. Returns, or raises, when no thread and no device touches either side any more.
        """
        base = mapping.address
        ctypes.memmove(base + response.object_offset, captured.pickle, len(captured.pickle))
        targets = [base + offset for offset in response.tensor_offsets]
        sizes, sources = captured.sizes, captured.addresses
        if sources is None:
            sources = [_host_address(storage) for storage in captured.storages]
            remote = [
                device.Copy(captured.storages[index], targets[index], sizes[index])
                for index in (range(len(targets)) if chosen is None else chosen)
                if sources[index] < 0 and sizes[index] > 0
            ]
            device.copy_all(remote, mapping, response.image, after)
        if chosen is not None:
            targets, sources, sizes = (
                [values[index] for index in chosen] for values in (targets, sources, sizes)
            )
        if max(sizes, default=0) > _SMALL_BYTES or -1 in sources:
            local = [p for p in zip(targets, sources, sizes) if p[1] > 0]
            pieces = [p for p in local if p[2] > _SMALL_BYTES]
            self._copy_large(pieces, mapping)
            rest = [p for p in local if 0 < p[2] <= _SMALL_BYTES]
            targets, sources, sizes = (list(column) for column in zip(*rest)) if rest else ([],) * 3
        _copy_small(targets, sources, sizes, mapping)
        if chosen is None:
            mapping.populated_bytes = response.image.size_bytes

    def _copy_large(self, pieces: List[_Piece], mapping: Mapping) -> None:
        total = sum(piece[2] for piece in pieces)
        copy = installed.stream_copy() if total >= _MIN_STREAM_BYTES else ctypes.memmove
        chunks = iter(list(_chunks(pieces)))  # a list's iterator may be shared by threads
        populated = mapping.address + mapping.populated_bytes

        def run() -> None:
            for to, source, size in chunks:
                if to + size > populated:
                    mapping.populate(max(to, populated) - mapping.address, to + size - mapping.address)
                copy(to, source, size)  # gives up the GIL

        self.run([run] * max(1, min(self.threads, total // _MIN_BYTES_PER_THREAD)))

    def run(self, tasks: List[Callable[[], None]]) -> None:
        """Runs as many tasks as there are threads, at once; returns when all have ended."""
        if len(tasks) == 1:
            tasks[0]()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, "ckptd-copy")
            others: List[Future[None]] = []
            try:
                for task in tasks[1:]:
                    others.append(self._pool.submit(task))
            except RuntimeError:  # the interpreter is ending, and threads take no more
                pass
        try:
            for task in (tasks[0], *tasks[1 + len(others) :]):
                task()
        finally:
            _wait_for_all(others)

    def close(self) -> None:
        """Ends the threads, after what they are at; the next copy starts others."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


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


def _chunks(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """`pieces`, the large ones cut."""
    for to, source, size in pieces:
        for start in range(0, size, _CHUNK_BYTES):
            yield to + start, source + start, min(_CHUNK_BYTES, size - start)


def _copy_small(
    targets: List[int], sources: List[int], sizes: List[int], mapping: Mapping
) -> None:
    if not targets:
        return
    start = max(targets[0] - mapping.address, mapping.populated_bytes)
    mapping.populate(start, targets[-1] + sizes[-1] - mapping.address)
    for first in range(0, len(targets), _SMALL_BATCH):
        part = slice(first, first + _SMALL_BATCH)
        deque(map(_locked_memmove, targets[part], sources[part], sizes[part]), maxlen=0)


def _host_address(storage: torch.UntypedStorage) -> int:
    """-1 for memory of a device."""
    return storage.data_ptr() if storage.device.type == "cpu" else -1
