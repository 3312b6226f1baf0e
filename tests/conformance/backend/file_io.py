"""A CheckpointIO as a user writes one who minds what a crash leaves."""

from __future__ import annotations

import contextlib
import os

import torch


class FileIO:
    """One file, by torch.save: written under another name, synced, renamed, synced."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        part = os.path.join(folder, f".{name[:100]}.part")
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        self._sync(folder)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(path, weights_only=False)

    def remove_checkpoint(self, path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if os.path.isdir(os.path.dirname(path)):
            self._sync(os.path.dirname(path))

    @staticmethod
    def _sync(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
