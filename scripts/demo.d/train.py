"""Trains an MLP on scikit-learn's digits with Lightning, and tells what its checkpoints cost.

About 60 MB of state: weights and Adam's two moments. Deterministic: the same steps give the same
weights, bit for bit, also when a run is resumed in the middle of an epoch.
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import pathlib
import statistics
import threading
import time
import warnings

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from sklearn.datasets import load_digits

from ckptd.lightning import SidecarCheckpointIO

SEED = 7
BATCH = 16
HIDDEN = 1536


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, 10),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4, fused=True)


class Batches:
    """Shuffled batches whose order hangs on nothing but how many were drawn.

    Lightning keeps `state_dict` in the checkpoint, so that a resumed run goes on with the very
    batch that the interrupted one would have seen next.
    """

    def __init__(self, x, y):
        self.x, self.y = x, y
        self.drawn = 0

    def __len__(self):
        return len(self.x) // BATCH

    def __iter__(self):
        epoch, first = divmod(self.drawn, len(self))
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(SEED + epoch))
        for i in range(first, len(self)):
            rows = order[i * BATCH : (i + 1) * BATCH]
            self.drawn += 1
            yield self.x[rows], self.y[rows]

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class StepFile(Callback):
    """Tells the demo, which is about to kill this process, how far it is."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        self.path.with_suffix(".new").write_text(str(trainer.global_step))
        self.path.with_suffix(".new").replace(self.path)


class Clock:
    """Wraps save_checkpoint of one plugin object: how long each call holds the trainer up, and,
    for the stock plugins, when the file was complete and on the disk.

    Neither stock plugin flushes what it writes, so the clock does: an fsync of the file and its
    folder once it is written, aside from the trainer.
    """

    def __init__(self):
        self.started, self.stalls, self.durable = [], [], []
        self.flushes = []

    def time_calls(self, plugin):
        save = plugin.save_checkpoint

        @functools.wraps(save)
        def timed(*args, **kwargs):
            self.started.append(time.time())
            start = time.perf_counter()
            save(*args, **kwargs)
            self.stalls.append(time.perf_counter() - start)

        plugin.save_checkpoint = timed
        return plugin

    def flush_files(self, plugin):
        save = plugin.save_checkpoint

        @functools.wraps(save)
        def saved(checkpoint, path, *args, **kwargs):
            index = len(self.flushes)
            save(checkpoint, path, *args, **kwargs)
            # Opened here, as the next save may remove the file.
            fds = [os.open(p, os.O_RDONLY) for p in (path, os.path.dirname(path))]
            thread = threading.Thread(target=self._flush, args=(index, fds))
            self.flushes.append(thread)
            thread.start()

        plugin.save_checkpoint = saved
        return plugin

    def _flush(self, index, fds):
        for fd in fds:
            os.fsync(fd)
            os.close(fd)
        self.durable.append((index, time.time() - self.started[index]))

    def join(self):
        for thread in self.flushes:
            thread.join()


def make_plugin(name, clock):
    if name == "sidecar":
        return clock.time_calls(SidecarCheckpointIO())
    base = clock.flush_files(TorchCheckpointIO())
    return clock.time_calls(base if name == "torch" else AsyncCheckpointIO(base))


def digits():
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    return x, torch.tensor(data.target)


def fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(args):
    # The sum of a matrix product hangs on how many threads share it; one leaves a core to ckptd.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    pl.seed_everything(SEED, verbose=False)
    x, y = digits()
    held_out = len(x) // 5
    model = Digits()
    clock = Clock()
    checkpoints = ModelCheckpoint(
        dirpath=args.dir,
        monitor="loss",
        every_n_train_steps=args.every,
        save_top_k=2,
        save_last=True,
    )
    trainer = pl.Trainer(
        plugins=[make_plugin(args.plugin, clock)],
        callbacks=[checkpoints, TQDMProgressBar(refresh_rate=10), StepFile(args.dir / "step")],
        max_steps=args.steps,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, Batches(x[held_out:], y[held_out:]), ckpt_path=args.resume)
    total = time.perf_counter() - start
    clock.join()
    with torch.no_grad():
        right = (model.net(x[:held_out]).argmax(1) == y[:held_out]).float().mean().item()
    print(
        f"{trainer.global_step} steps, {len(clock.stalls)} saves, median stall "
        f"{statistics.median(clock.stalls) * 1000:.0f} ms, {right:.1%} of unseen digits right"
    )
    return {
        "plugin": args.plugin,
        "weights": fingerprint(model),
        "started": clock.started,
        "stalls": clock.stalls,
        "durable": [seconds for _, seconds in sorted(clock.durable)],
        "total": total,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugin", choices=["sidecar", "torch", "async"], default="sidecar")
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="for the checkpoints")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25, help="steps between two checkpoints")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--report", type=pathlib.Path, help="a file for what was measured")
    args = parser.parse_args()
    # Lightning's hints, on GPUs, workers and loggers, are about none of this.
    warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    args.dir.mkdir(parents=True, exist_ok=True)
    report = train(args)
    if args.report:
        args.report.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
