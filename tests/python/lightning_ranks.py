"""The program of test_lightning_ranks.py. Strategies with processes run it, or parts of it, in each.

usage: lightning_ranks.py FOLDER STRATEGY...

STRATEGY-own: saves by a CheckpointIO of one's own. Where ranks run the whole program, each loads.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from ckptd.lightning import SidecarCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning_models import quiet_trainer
from own_io import Mine


class Model(BoringModel):
    """Notes in which processes it is trained."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        (self.folder / f"rank-{self.global_rank}").write_text(str(os.getpid()))


class Noted(SidecarCheckpointIO):
    """Counts its saves."""

    saves = 0

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.saves += 1
        super().save_checkpoint(checkpoint, path, storage_options)


def run(folder, name):
    """Fits, and notes what the process that called fit has then."""
    folder.mkdir(exist_ok=True)
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=1)
    own = name.endswith("-own")
    plugin = Noted(Mine()) if own else Noted()
    trainer = quiet_trainer(
        pl,
        max_epochs=2,
        devices=2,
        strategy=name.removesuffix("-own"),
        plugins=[plugin],
        callbacks=[checkpoints],
        limit_train_batches=2,
        limit_val_batches=0,
        limit_test_batches=1,
        default_root_dir=folder,
    )
    model = Model(folder)
    trainer.fit(model)
    if name == "ddp-own":
        trainer.test(model, ckpt_path=checkpoints.last_model_path, verbose=False, weights_only=False)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    found = {
        "saves": plugin.saves,
        "files": sorted(os.listdir(folder / "checkpoints")),
        "best": Path(checkpoints.best_model_path).name,
        "step": last["global_step"],
        "same": all(torch.equal(last["state_dict"][k], v) for k, v in model.state_dict().items()),
        "pid": os.getpid(),
    }
    (folder / f"found-{trainer.global_rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        run(Path(sys.argv[1]) / chosen, chosen)
