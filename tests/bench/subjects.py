"""The ways to save that are compared. Each has save(state, path), which returns when the trainer
may go on, and wait(), which returns when that save is on the disk."""

import os
import subprocess
import tempfile
import time

import ckptd
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.plugins.io import AsyncCheckpointIO


def flush(path):
    for name in (path, os.path.dirname(path)):
        fd = os.open(name, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class TorchSave:
    """torch.save and fsync."""

    def save(self, state, path):
        torch.save(state, path)
        flush(path)

    def wait(self):
        pass


class LightningAsync:
    """Lightning's AsyncCheckpointIO; its writer thread flushes the file, which it otherwise would
    leave to the kernel."""

    class Flushed(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            super().save_checkpoint(checkpoint, path, storage_options)
            flush(path)

    def __init__(self):
        self.plugin = AsyncCheckpointIO(self.Flushed())

    def save(self, state, path):
        self.plugin.save_checkpoint(state, path)

    def wait(self):
        self.plugin.teardown()


class Ckptd:
    """ckptd.save to a daemon."""

    def __init__(self, address):
        self.client = ckptd.Client(address=address, on_unavailable="raise")

    def reserve(self, state):
        self.client.reserve(state, images=1, wait=True)

    def save(self, state, path):
        self.pending = self.client.save(state, path)

    def wait(self):
        self.pending.result()


class Daemon:
    """A ckptd of the benchmark's own."""

    def __init__(self, binary, budget):
        self.folder = tempfile.TemporaryDirectory(prefix="ckptd-bench-")
        self.pool = tempfile.TemporaryDirectory(prefix="ckptd-bench-", dir="/dev/shm")
        socket = os.path.join(self.folder.name, "ckptd.sock")
        self.address = f"unix:{socket}"
        self.log = open(os.path.join(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            [binary, "--socket", socket, "--pool-dir", self.pool.name]
            + ["--state-dir", f"{self.folder.name}/state", f"--staging-budget={budget}"],
            stderr=self.log,
        )
        deadline = time.monotonic() + 30
        while not os.path.exists(socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise RuntimeError(f"ckptd does not serve: {self.log.read()}")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended_early = self.process.poll() is not None
        self.process.terminate()
        if self.process.wait() != 0 or ended_early:
            self.log.seek(0)
            print(f"ckptd ended with status {self.process.returncode}: {self.log.read()}")
        self.log.close()
        self.pool.cleanup()
        self.folder.cleanup()
