"""SidecarCheckpoint: who hears when, and the example of docs/lightning.md."""

from __future__ import annotations

import importlib
import os
import re
import threading

import ckptd
import pytest
import torch
from ckptd.lightning import SidecarCheckpoint, SidecarCheckpointIO
from harness import REPO
from lightning_models import PACKAGES, make_model, make_trainer, quiet_trainer
from mounts import needs_root, tmpfs


class Hearing(SidecarCheckpoint):
    """Notes what it hears, and what lies at the path then."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def on_checkpoint_durable(self, trainer, save):
        assert threading.current_thread() is threading.main_thread()
        assert torch.load(save.path, weights_only=False)["global_step"] <= trainer.global_step
        assert self.last_model_path == save.path
        self.heard.append(os.path.basename(save.path))

    def on_checkpoint_failed(self, trainer, save, error):
        self.heard.append((os.path.basename(save.path), error.reason))


def make_logger(pl):
    """One that notes whether a checkpoint is there when it is told, and what else it is told."""
    loggers = importlib.import_module(f"{pl.__name__}.loggers.logger")

    class Noting(loggers.DummyLogger):
        def __init__(self):
            super().__init__()
            self.told = []

        def after_save_checkpoint(self, checkpoint_callback):
            path = checkpoint_callback.best_model_path or checkpoint_callback.last_model_path
            self.told.append(len(os.listdir(os.path.dirname(path))) > 0)

        def finalize(self, status):
            self.told.append(status)

    return Noting()


def test_trainer_takes_it_for_a_checkpoint_callback(pl, plugin, tmp_path):
    hearing = Hearing()
    trainer = quiet_trainer(
        pl, max_steps=1, plugins=[plugin], callbacks=[hearing], default_root_dir=tmp_path
    )
    assert trainer.checkpoint_callbacks == [hearing]
    with pytest.raises(Exception, match="enable_checkpointing=False"):
        quiet_trainer(pl, callbacks=[Hearing()], enable_checkpointing=False)
    trainer.fit(make_model(pl))
    assert hearing.heard == [] and os.listdir(tmp_path) == []


def test_each_save_is_heard_of_once_and_the_logger_after_it(pl, plugin, tmp_path):
    hearing, logger = Hearing(), make_logger(pl)
    trainer = make_trainer(
        pl, tmp_path, plugin, 3, [hearing], {"logger": logger}, save_top_k=-1, save_last=True
    )
    trainer.fit(make_model(pl))
    epochs = [f"epoch={i}-step={5 * (i + 1)}.ckpt" for i in range(3)]
    assert sorted(hearing.heard) == epochs + ["last.ckpt"] * 3
    assert [name for name in hearing.heard if name != "last.ckpt"] == epochs
    assert hearing.last_model_path == str(tmp_path / "last.ckpt")
    assert logger.told[-1] == "success" and 0 < len(logger.told[:-1]) <= 6
    assert all(logger.told[:-1])
    trainer.save_checkpoint(tmp_path / "manual.ckpt")
    assert "after_save_checkpoint" not in vars(logger) and len(hearing.heard) == 6
    trainer.fit_loop.max_epochs = 4
    trainer.fit(make_model(pl))  # once more with the same objects
    assert len(hearing.heard) > 6


def test_a_run_that_raises_is_heard_of_to_its_end(pl, plugin, tmp_path, caplog):
    class Failing(Hearing):
        def on_checkpoint_durable(self, trainer, save):
            super().on_checkpoint_durable(trainer, save)
            if trainer.state.status == "interrupted":
                raise RuntimeError("hook boom")

    hearing = Failing()
    model = make_model(pl)
    model.fail_at = 7
    trainer = quiet_trainer(
        pl,
        max_epochs=2,
        plugins=[plugin],
        # It saves after the others have heard of the exception.
        callbacks=[hearing, pl.callbacks.OnExceptionCheckpoint(tmp_path, "boom")],
    )
    with pytest.raises(ValueError, match="train boom"):
        trainer.fit(model)
    assert hearing.heard == ["boom.ckpt"]
    assert "hook boom" in caplog.text


@needs_root
def test_what_failed_is_heard_of_and_raised(pl, plugin, tmp_path):
    with tmpfs(tmp_path / "mount", "size=2m") as folder:
        model = make_model(pl)
        model.register_buffer("ballast", torch.zeros(1_000_000))
        hearing, logger = Hearing(), make_logger(pl)
        trainer = make_trainer(pl, folder, plugin, 1, [hearing], {"logger": logger})
        with pytest.raises(ckptd.SaveError, match="No space left"):
            trainer.fit(model)
    assert hearing.heard == [("epoch=0-step=5.ckpt", "STORAGE_FULL")]
    assert logger.told == ["failed"]


def test_a_trainer_with_another_plugin_is_refused(pl):
    trainer = quiet_trainer(pl, max_steps=1, callbacks=[Hearing()])
    with pytest.raises(ValueError, match=r"saves through TorchCheckpointIO.*plugins=\[Sidecar"):
        trainer.fit(make_model(pl))


def test_hears_through_a_wrapper(plugin, tmp_path):
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    hearing = Hearing()
    # It never tears its base down, nor flushes it.
    wrapper = AsyncCheckpointIO(SidecarCheckpointIO(client=plugin.client, wait="durable"))
    make_trainer(pl, tmp_path, wrapper, 1, [hearing]).fit(make_model(pl))
    assert hearing.heard == ["epoch=0-step=5.ckpt"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_example_of_the_docs(package, plugin, tmp_path):
    page = (REPO / "docs" / "lightning.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "class" in code)
    assert len(example.splitlines()) <= 25
    names = {}
    exec(compile(example, "docs/lightning.md", "exec"), names)
    pl = importlib.import_module(package)
    callback, logger = names["EveryNSteps"](tmp_path, 3), make_logger(pl)
    trainer = quiet_trainer(
        pl, max_epochs=2, plugins=[plugin], callbacks=[callback], logger=logger
    )
    trainer.fit(make_model(pl))
    assert sorted(os.listdir(tmp_path)) == ["step=6.ckpt", "step=9.ckpt"]
    assert all(logger.told)
    model = make_model(pl)
    model.test_step = lambda batch, batch_idx: None
    trainer.test(model, model.train_dataloader(), ckpt_path="best")
    assert trainer.ckpt_path == str(tmp_path / "step=9.ckpt")
