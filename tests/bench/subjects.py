"""The ways to save that are compared.

A subject has save(state, path), which returns when the trainer may go on, wait(), which returns
when all that was saved is on the disk, file and folder, and load(path, target), which gives back
the state dict; `target` holds tensors that it may load into.
"""

import importlib
import os

import torch


def flush(path):
    """To the disk: a file, or a folder with what is in it, and its name."""
    names = [path, os.path.dirname(path)]
    if os.path.isdir(path):
        names += [os.path.join(path, name) for name in os.listdir(path)]
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class Subject:
    """What most have in common: one torch file, written when save returns."""

    def save(self, state, path):
        raise NotImplementedError

    def wait(self):
        """All is on the disk when save returns."""

    def load(self, path, target):
        return torch.load(path, mmap=True, weights_only=True)

    def close(self):
        """Nothing is held."""


class TorchSave(Subject):
    def save(self, state, path):
        torch.save(state, path)
        flush(path)


class Safetensors(Subject):
    def __init__(self):
        from safetensors import torch as safetensors

        self.format = safetensors

    def save(self, state, path):
        self.format.save_file(state, path)
        flush(path)

    def load(self, path, target):
        return self.format.load_file(path)


class LightningTorch(Subject):
    """TorchCheckpointIO; flushed, which it leaves to the kernel."""

    def __init__(self):
        from lightning_fabric.plugins import TorchCheckpointIO

        self.plugin = TorchCheckpointIO()

    def save(self, state, path):
        self.plugin.save_checkpoint(state, path)
        flush(path)


class LightningAsync(Subject):
    """AsyncCheckpointIO; its writer thread flushes the file."""

    def __init__(self):
        from lightning_fabric.plugins import TorchCheckpointIO
        from pytorch_lightning.plugins.io import AsyncCheckpointIO

        class Flushed(TorchCheckpointIO):
            def save_checkpoint(self, checkpoint, path, storage_options=None):
                super().save_checkpoint(checkpoint, path, storage_options)
                flush(path)

        self.plugin = AsyncCheckpointIO(Flushed())

    def save(self, state, path):
        self.plugin.save_checkpoint(state, path)

    def wait(self):
        self.plugin.teardown()


class Dcp(Subject):
    """torch.distributed.checkpoint.async_save of one rank.

    kept_stager: stage into shared memory that is kept from save to save.
    process:     write in a process of its own, not a thread.
    """

    def __init__(self, kept_stager=False, process=False):
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import staging, state_dict_saver

        self.dcp = dcp
        kinds = state_dict_saver.AsyncCheckpointerType
        self.options = {
            "no_dist": not process,
            "async_checkpointer_type": kinds.PROCESS if process else kinds.THREAD,
        }
        self.stager = None
        if kept_stager:
            self.stager = staging.DefaultStager(staging.StagingOptions(False, True, False, False))
        self.process = process
        if process:
            self._make_process_group()
        self.pending = []

    def save(self, state, path):
        answer = self.dcp.async_save(
            state, checkpoint_id=path, async_stager=self.stager, **self.options
        )
        self.pending.append((path, getattr(answer, "upload_completion", answer)))

    def wait(self):
        pending, self.pending = self.pending, []
        errors = []
        for path, future in pending:
            try:
                future.result()
                flush(path)
            except BaseException as error:  # CheckpointException is no Exception
                errors.append(error)
        if errors:
            raise errors[0]

    def load(self, path, target):
        self.dcp.load(target, checkpoint_id=path, no_dist=True)
        return target

    def close(self):
        if self.stager is not None:
            self.stager.close()
        if self.process:
            torch.distributed.destroy_process_group()

    def _make_process_group(self):
        store = torch.distributed.TCPStore("127.0.0.1", 0, 1, True)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


class Ckptd(Subject):
    """ckptd.save to the daemon at `address`; reserve: `state` is what will be saved first."""

    def __init__(self, address, reserve=None, backend="torch", **options):
        import ckptd

        self.backend = backend
        self.client = ckptd.Client(address=address, on_unavailable="raise", **options)
        self.pending = []
        if reserve is not None:
            self.client.reserve(reserve, images=1, wait=True)

    def save(self, state, path):
        self.pending.append(self.client.save(state, path, backend=self.backend))

    def wait(self):
        pending, self.pending = self.pending, []
        for save in pending:
            save.result()

    def close(self):
        self.client.close()


_DCP = "torch.distributed.checkpoint"
# Name -> (how to make it, the module that it needs).
PEERS = {
    "torch.save + fsync": (TorchSave, "torch"),
    "safetensors + fsync": (Safetensors, "safetensors.torch"),
    "Lightning TorchCheckpointIO": (LightningTorch, "pytorch_lightning.plugins.io"),
    "Lightning AsyncCheckpointIO": (LightningAsync, "pytorch_lightning.plugins.io"),
    "DCP async_save, default": (Dcp, _DCP),
    "DCP async_save, kept stager": (lambda: Dcp(kept_stager=True), _DCP),
    "DCP async_save, process": (lambda: Dcp(kept_stager=True, process=True), _DCP),
}
# Those whose save returns before the file is written.
ASYNCHRONOUS = [name for name in PEERS if "async" in name.lower()]
OURS = "ckptd"
OURS_FIRST = "ckptd, first save of a process"


def missing(name):
    """Why a peer cannot run here; None if nothing is known against it. Imports what it needs, once
    for all processes that are forked from this one."""
    try:
        importlib.import_module(PEERS[name][1])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
