"""Memory is reserved as a fit begins, without a line in the user's program."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch
from ckptd import fit_start
from ckptd.lightning import SidecarCheckpointIO
from harness import wait_until
from test_reserve import mappings

WIDTH = 1000
MODEL_BYTES = 4 * WIDTH * WIDTH


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    return importlib.import_module(request.param)


def make_trainer(pl, plugin, folder, at_step, optimizers, **options):
    """A fit of two steps; `at_step(trainer)` is called after the first."""

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = torch.nn.Linear(WIDTH, WIDTH)
            self.other = torch.nn.Linear(WIDTH, WIDTH)

        def training_step(self, batch, batch_idx):
            used = self.optimizers()
            for optimizer in used if isinstance(used, list) else [used]:
                optimizer.zero_grad()
                (self.net(batch[0]) + self.other(batch[0])).square().mean().backward()
                optimizer.step()

        def configure_optimizers(self):
            return optimizers(self)

        def train_dataloader(self):
            data = torch.utils.data.TensorDataset(torch.randn(2, WIDTH))
            return torch.utils.data.DataLoader(data, batch_size=1)

    class AtStep(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == len(trainer.optimizers):
                at_step(trainer)

    callbacks = [AtStep()]
    if options.get("enable_checkpointing", True):
        callbacks.append(pl.callbacks.ModelCheckpoint(dirpath=folder, save_last=True))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", plugins=[plugin], callbacks=callbacks, **quiet, **options
    )
    return trainer, Model()


def adam(model):
    return torch.optim.Adam(model.parameters())


def adam_and_sgd(model):
    return [torch.optim.SGD(model.net.parameters()), torch.optim.Adam(model.other.parameters())]


def test_first_save_finds_memory(pl, make_daemon, tmp_path):
    client = make_daemon().client()
    plugin = pickle.loads(pickle.dumps(SidecarCheckpointIO(client=client)))
    reserved = []

    def at_step(trainer):
        reserved.append(plugin._reserved_bytes)
        wait_until(lambda: count_populated(plugin) >= 2, "two images to be mapped and populated")

    for number in range(2):  # each fit anew
        trainer, model = make_trainer(pl, plugin, tmp_path / str(number), at_step, adam_and_sgd)
        trainer.fit(model)
        size = (tmp_path / str(number) / "last.ckpt").stat().st_size
        assert 4 * MODEL_BYTES < size <= reserved.pop() < 1.1 * size


def count_populated(plugin):
    """Mappings of the plugin's client that a save of the reserved size finds populated."""
    needed = 0.99 * plugin._reserved_bytes
    return sum(one.populated_bytes >= needed for one in mappings(plugin.client).values())


def test_nothing_where_nothing_will_be_saved(pl, make_daemon, tmp_path):
    daemon = make_daemon()
    plugin = SidecarCheckpointIO(client=daemon.client())

    def at_step(trainer):
        assert plugin._reserved_bytes == 0

    trainer, model = make_trainer(
        pl, plugin, tmp_path, at_step, adam, enable_checkpointing=False
    )
    trainer.fit(model)
    assert daemon.status().pool.image_count == 0


def test_hook_goes_when_nobody_watches_any_more():
    before = set(fit_start._watches)
    plugin = SidecarCheckpointIO()
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight])
    assert plugin._watch in fit_start._watches
    for _ in range(fit_start._MAX_STEPS):
        optimizer.step()
    assert plugin._watch not in fit_start._watches
    assert set(fit_start._watches) <= before
    assert (fit_start._hook is None) == (not fit_start._watches)
