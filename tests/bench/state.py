"""The state dict that everybody saves: float32 tensors in one shared file.

Every process of the benchmark maps the same file, so that each subject saves the very same memory
and each new process finds it warm. The tensors hold whole numbers, so that adding 1 is exact and
an older snapshot can be told from the state as it is.
"""

import mmap
import os
import tempfile

import torch

TENSORS = 148
SHARED_DIR = "/dev/shm"
SNAPSHOT, TORN, MISSING = "snapshot", "torn", "missing"


class SharedFile:
    """An unnamed file in shared memory, whole pages; for this process and those forked from it."""

    def __init__(self, size):
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        with tempfile.TemporaryFile(dir=SHARED_DIR) as file:
            os.posix_fallocate(file.fileno(), 0, self.size)
            self._fd = os.dup(file.fileno())
        self.memory = mmap.mmap(self._fd, self.size)

    def map_again(self):
        """The same memory in a mapping of its own, without page tables."""
        again = object.__new__(SharedFile)
        again.size, again._fd = self.size, self._fd
        again.memory = mmap.mmap(self._fd, self.size)
        return again


class State:
    """The tensors by name, in `shared`."""

    def __init__(self, shared, size):
        count = size // TENSORS // 4
        self._shared = shared
        self.tensors = {
            f"layer{i}.weight": torch.frombuffer(
                shared.memory, dtype=torch.float32, count=count, offset=4 * count * i
            )
            for i in range(TENSORS)
        }
        self.nbytes = 4 * count * TENSORS

    def fill(self):
        """Each tensor begins with values of its own."""
        for i, tensor in enumerate(self.tensors.values()):
            torch.arange(tensor.numel(), out=tensor)
            tensor.remainder_(1000).add_(i)

    def step(self):
        """What an optimizer does: changes each tensor in place."""
        torch._foreach_add_(list(self.tensors.values()), 1)

    def smaller(self, part):
        """A state of as many tensors, each a `part`-th as large, in the same memory."""
        return State(self._shared, self.nbytes // part)

    def views_of(self, shared):
        """Tensors of the same names and shapes in other shared memory."""
        return State(shared, self.nbytes).tensors

    def judge(self, loaded, age=1):
        """Whether `loaded` is the state as it was `age` steps ago."""
        if loaded is None:
            return MISSING
        if loaded.keys() != self.tensors.keys():
            return TORN
        same = torch.empty_like(next(iter(self.tensors.values())))
        for name, tensor in self.tensors.items():
            if not torch.equal(torch.add(loaded[name], age, out=same), tensor):
                return TORN
        return SNAPSHOT
