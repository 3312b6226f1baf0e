"""What the machine itself can do: the yardsticks beside each sample. All times are in seconds."""

import concurrent.futures
import contextlib
import ctypes
import mmap
import os
import socket
import threading
import time

CHUNK = 16 << 20
SOCKET_CHUNK = 1 << 20


class Limits:
    """Measures with `shared`, warm memory as large as the state, as a staging image is."""

    def __init__(self, shared, folder):
        self.memory = shared.memory
        self.size = shared.size
        self.folder = folder
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def memcpy(self, tensors, threads, times=3):
        """To copy the tensors in, each thread a share of about the same size: the best of
        `times`, for a limit is what undisturbed memory gives."""
        total = sum(tensor.nbytes for tensor in tensors)
        copies = [[] for _ in range(threads)]
        offset = 0
        for tensor in tensors:
            share = min(offset * threads // total, threads - 1)
            copies[share].append((self.address + offset, tensor.data_ptr(), tensor.nbytes))
            offset += tensor.nbytes

        def run(share):
            for to, source, size in share:
                ctypes.memmove(to, source, size)  # lets go of the interpreter lock

        taken = []
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in range(times + 1):  # the first starts the threads and warms the pages
                start = time.perf_counter()
                list(pool.map(run, copies))
                taken.append(time.perf_counter() - start)
        return min(taken[1:])

    def fastest_memcpy(self, tensors):
        """The faster of one thread and two."""
        return min(self.memcpy(tensors, threads) for threads in (1, 2))

    def direct_write(self, size=None):
        """To write `size` bytes with O_DIRECT to a new file, to the end of fdatasync."""
        size = self.size if size is None else -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        path = os.path.join(self.folder, "limit")
        view = memoryview(self.memory)[:size]
        start = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            for offset in range(0, size, CHUNK):
                chunk = view[offset : offset + CHUNK]
                if os.write(fd, chunk) != len(chunk):
                    raise OSError(f"{path}: short write")
            os.fdatasync(fd)
            return time.perf_counter() - start
        finally:
            os.close(fd)
            os.unlink(path)

    def direct_read(self, path):
        """To read the file with O_DIRECT, as much of it as there is warm memory for."""
        view = memoryview(self.memory)
        start = time.perf_counter()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            size = min(os.fstat(fd).st_size, self.size)
            for offset in range(0, size, CHUNK):
                os.preadv(fd, [view[offset : offset + CHUNK]], offset)
            return time.perf_counter() - start
        finally:
            os.close(fd)

    def socket_stream(self, size, times=3):
        """To send `size` bytes, at most half of the memory, to another thread through a unix
        socket, to its answer: the best of `times`."""
        return min(self._stream_once(size) for _ in range(times))

    def _stream_once(self, size):
        source, sink = socket.socketpair()
        view = memoryview(self.memory)
        sent, got = view[:size], view[self.size - size :]

        def receive():
            have = 0
            while have < size:
                have += sink.recv_into(got[have : have + SOCKET_CHUNK])
            sink.send(b".")

        with contextlib.closing(source), contextlib.closing(sink):
            receiver = threading.Thread(target=receive)
            receiver.start()
            start = time.perf_counter()
            for offset in range(0, size, SOCKET_CHUNK):
                source.sendall(sent[offset : offset + SOCKET_CHUNK])
            source.recv(1)
            taken = time.perf_counter() - start
            receiver.join()
        return taken

    def direct_write_beside(self, tensors):
        """direct_write of as many bytes. What it wrote is gone from the disk when this returns, as
        after `settings.remove`: a save would pay for it."""
        taken = self.direct_write(sum(tensor.nbytes for tensor in tensors))
        os.sync()
        return taken


def drop_cache(path):
    """Takes the file out of the page cache. Raises RuntimeError where the kernel keeps it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            cached = _resident_pages(view, size)
    finally:
        os.close(fd)
    if cached * 100 > size // mmap.PAGESIZE:
        raise RuntimeError(f"{path}: {cached} pages of it stay in the page cache")


def _resident_pages(view, size):
    # A read-only mmap gives its address to numpy, not to ctypes.
    import numpy

    address = numpy.frombuffer(view, dtype=numpy.uint8).ctypes.data
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if libc.mincore(address, size, pages) != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in bytes(pages))
