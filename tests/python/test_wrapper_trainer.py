"""Trainers that save through SidecarCheckpointIO(checkpoint_io=...), alone and within each other."""

from __future__ import annotations

import copy
import importlib
import os
import pickle

import pytest
from ckptd.lightning import SidecarCheckpoint, SidecarCheckpointIO
from lightning_models import make_model, make_trainer
from own_io import Mine


@pytest.fixture
def wrapper(client):
    return SidecarCheckpointIO(Mine(), client=client)


def test_fits_and_resumes(pl, wrapper, tmp_path):
    best = {"save_top_k": 1, "monitor": "epoch", "mode": "max"}
    trainer = make_trainer(pl, tmp_path / "one", wrapper, **best)
    model = make_model(pl)
    trainer.fit(model)
    assert os.listdir(tmp_path / "one") == ["epoch=1-step=10.ckpt"]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, ckpt_path=str(tmp_path / "one" / "epoch=1-step=10.ckpt"))
    assert "epoch=2-step=15.ckpt" in os.listdir(tmp_path / "one")
    # The same object in another Trainer.
    make_trainer(pl, tmp_path / "two", wrapper, 1).fit(model)
    assert os.listdir(tmp_path / "two") == ["epoch=0-step=5.ckpt"]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_of_a_trainer(wrapper, tmp_path, copier):
    pl = importlib.import_module("lightning.pytorch")
    boring = importlib.import_module("lightning.pytorch.demos.boring_classes")
    few = {"limit_train_batches": 2, "limit_val_batches": 0}
    trainer = make_trainer(pl, tmp_path, wrapper, 1, options=few)
    trainer.fit(boring.BoringModel())
    other = copier(trainer)
    assert isinstance(other.strategy.checkpoint_io.checkpoint_io, Mine)
    other.fit_loop.max_epochs = 2
    other.fit(boring.BoringModel())
    assert os.listdir(tmp_path) == ["epoch=1-step=4.ckpt"]


class Hearing(SidecarCheckpoint):
    """Notes what it hears, and which Trainer says it."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def on_checkpoint_durable(self, trainer, save):
        self.heard.append((os.path.basename(save.path), trainer))


@pytest.mark.parametrize("base", [None, Mine])
def test_a_trainer_in_a_trainer(pl, client, tmp_path, base):
    plugin = SidecarCheckpointIO(base and base(), client=client)
    outer_hearing, inner_hearing = Hearing(), Hearing()

    class Searches(type(make_model(pl))):
        """Trains another one in its second epoch, as a search for hyperparameters does."""

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                inner = make_trainer(pl, tmp_path / "inner", plugin, 1, [inner_hearing])
                inner.fit(make_model(pl))

    outer = make_trainer(pl, tmp_path / "outer", plugin, 2, [outer_hearing], save_top_k=-1)
    outer.fit(Searches())
    assert [name for name, _ in inner_hearing.heard] == ["epoch=0-step=5.ckpt"]
    names = ["epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt"]
    assert outer_hearing.heard == [(name, outer) for name in names]
    assert sorted(os.listdir(tmp_path / "outer")) == names
