"""What the machine itself can do: the yardsticks beside each sample."""

import concurrent.futures
import ctypes
import mmap
import os
import tempfile
import time

PAGE = mmap.PAGESIZE
CHUNK = 16 << 20


class Scratch:
    """Warm shared memory as large as a state, as the staging image of a save is."""

    def __init__(self, size):
        self.size = (size + PAGE - 1) // PAGE * PAGE
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            file.truncate(self.size)
            self.memory = mmap.mmap(file.fileno(), self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        ctypes.memset(self.address, 1, self.size)

    def memcpy(self, tensors, threads):
        """Seconds to copy the tensors in, each thread a share of about the same size."""
        copies = [[] for _ in range(threads)]
        offset = 0
        for tensor in tensors:
            share = min(offset * threads // self.size, threads - 1)
            copies[share].append((self.address + offset, tensor.data_ptr(), tensor.nbytes))
            offset += tensor.nbytes

        def run(share):
            for to, source, size in share:
                ctypes.memmove(to, source, size)  # lets go of the interpreter lock

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, copies))  # starts the threads and warms the pages
            start = time.perf_counter()
            list(pool.map(run, copies))
            return time.perf_counter() - start

    def direct_write(self, path):
        """Seconds to write it all with O_DIRECT to a new file, to the end of fdatasync."""
        view = memoryview(self.memory)
        start = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            for offset in range(0, self.size, CHUNK):
                chunk = view[offset : offset + CHUNK]
                if os.write(fd, chunk) != len(chunk):
                    raise OSError(f"{path}: short write")
            os.fdatasync(fd)
            return time.perf_counter() - start
        finally:
            os.close(fd)
            os.unlink(path)


def measure(scratch, tensors, folder):
    """All limits, now. The best of three copies: a limit is what undisturbed memory gives."""
    return {
        "memcpy1": min(scratch.memcpy(tensors, 1) for _ in range(3)),
        "memcpy2": min(scratch.memcpy(tensors, 2) for _ in range(3)),
        "direct": scratch.direct_write(os.path.join(folder, "limit")),
    }
