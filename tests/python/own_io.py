"""A CheckpointIO of one's own, as the expert guide has it; with what tests want of it."""

from __future__ import annotations

import os
import time

import torch


class Mine:
    """Takes words in a checkpoint for orders: to wait for a file, to raise, to end the process, or
    to note the process.

    until: the file that each save waits for, if any.
    ends:  the file that teardown waits for, if any.
    """

    def __init__(self, until="", ends=""):
        self.until = str(until)
        self.ends = str(ends)

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        print("begins", os.path.basename(path))
        self._wait_for(checkpoint.get("until", self.until))
        if checkpoint.get("raise"):
            raise ValueError("no luck")
        if checkpoint.get("exit"):
            os._exit(3)
        print("writing", os.path.basename(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if storage_options == "folder":
            os.makedirs(path)
            path = os.path.join(path, "state.pt")
        if "by" in checkpoint:
            checkpoint = {**checkpoint, "by": os.getpid()}
        torch.save(checkpoint, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(path, weights_only=False)

    def remove_checkpoint(self, path):
        os.remove(path)

    def teardown(self):
        self._wait_for(self.ends)

    @staticmethod
    def _wait_for(path):
        while path and not os.path.exists(path):
            time.sleep(0.01)


class Echo:
    """Keeps what it is given beside the checkpoint, and gives back what a load is given."""

    def save_checkpoint(self, *arguments, **named):
        path = arguments[1] if len(arguments) > 1 else named["path"]
        torch.save((arguments[1:], sorted(named)), path)

    def load_checkpoint(self, *arguments, **named):
        return arguments, named

    def remove_checkpoint(self, path):
        pass
