"""Forks Lightning trainers: importing torch and lightning takes seconds, and a fork none.

stdin             stdout
                  0, when it has imported all
start CONFIG      the trainer's process id; CONFIG is a Config as JSON
wait              0, when it has ended; it keeps its process id, so a late signal hits nobody else
reap              its exit code, negative for a signal

The zygote runs no thread and has used no gRPC when it forks, so each trainer is like one that was
started afresh.

A trainer writes down, in its ledger, each thing that it is about to ask of the plugin and, when
the plugin has returned, that it has. A line is one write: SIGKILL leaves it whole or away.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Dict, NoReturn

import lightning.pytorch as pl
import torch
from ledger import Ledger
from lightning.pytorch.callbacks import ModelCheckpoint
from pieces import digest
from trainers import Config

import ckptd
from ckptd.lightning import SidecarCheckpointIO

_BATCH = 4


class NotedSidecar(SidecarCheckpointIO):
    """The plugin, and a note of each state before it is saved."""

    def __init__(self, ledger: Ledger, client: ckptd.Client) -> None:
        super().__init__(client=client)
        self._ledger = ledger

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        """Saves, with a note before and one after."""
        what = {
            "path": str(path),
            "digest": digest(checkpoint),
            "step": checkpoint["global_step"],
            "weights": trained(checkpoint),
        }
        self._ledger.note("save", **what)
        super().save_checkpoint(checkpoint, path, storage_options)
        self._ledger.note("saved", path=str(path))

    def remove_checkpoint(self, path) -> None:
        """Removes, with a note before and one after."""
        self._ledger.note("remove", path=str(path))
        super().remove_checkpoint(path)
        self._ledger.note("removed", path=str(path))


def trained(checkpoint: Dict[str, Any]) -> str:
    """A hash of what training makes of the model; the same for the same number of steps."""
    return digest([checkpoint["state_dict"], checkpoint["optimizer_states"]])


class Model(pl.LightningModule):
    """Its batches hang on nothing but the step, so that a resumed run is an uninterrupted one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.width = width
        self.net = torch.nn.Linear(width, width)

    def training_step(self, batch, batch_idx):
        """One step; what is monitored grows, so that the newest checkpoints are the best."""
        generator = torch.Generator().manual_seed(self.global_step)
        self.log("steps", float(self.global_step))
        return self.net(torch.randn(_BATCH, self.width, generator=generator)).square().mean()

    def configure_optimizers(self):
        """With a momentum: as large as the weights."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def train(config: Config) -> None:
    """Trains to `max_steps` from last.ckpt, where there is one, with two saves after each step."""
    ledger = Ledger(config.ledger)
    client = ckptd.Client(
        config.address, job=config.job, transport=config.transport, on_unavailable="raise"
    )
    callback = ModelCheckpoint(
        dirpath=config.folder,
        every_n_train_steps=1,
        save_top_k=2,
        monitor="steps",
        mode="max",
        save_last=True,
    )
    trainer = pl.Trainer(
        plugins=[NotedSidecar(ledger, client)],
        callbacks=[callback] if config.save else [],
        enable_checkpointing=config.save,
        max_steps=config.max_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(range(1 << 30), batch_size=1)  # one epoch without end
    model = Model(config.width)
    trainer.fit(model, data, ckpt_path="last" if config.save else None)
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    weights = digest([model.state_dict(), optimizers])
    ledger.note("finished", step=trainer.global_step, weights=weights)


def become_trainer(config: Config) -> NoReturn:
    """The life of a forked child; not to the interpreter's own end, which takes seconds."""
    log = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, fd)
    try:
        train(config)
    except BaseException:  # noqa: BLE001 - it must not return into the zygote
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Serves orders until stdin ends."""
    # Hints about workers and loggers, and its own joy about being Lightning.
    warnings.filterwarnings("ignore", module="lightning")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    print(0, flush=True)  # ready
    pid = 0
    for order in sys.stdin:
        verb, _, argument = order.strip().partition(" ")
        if verb == "start":
            assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
            pid = os.fork()
            if pid == 0:
                become_trainer(Config(**json.loads(argument)))
            print(pid, flush=True)
        elif verb == "wait":
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            print(0, flush=True)
        else:
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    assert Path(ckptd.__file__).is_relative_to(Path(__file__).resolve().parents[2])
    main()
