"""While storage fails and is tried again, a Trainer goes on, and nobody hears of a checkpoint."""

from __future__ import annotations

import errno
import importlib

import pytest
from ckptd.lightning import SidecarCheckpointIO, progress
from harness import wait_until
from lightning_models import make_model, make_trainer
from test_lightning_callback import Hearing, make_logger


@pytest.fixture
def failing(faulty_fs):
    """Syncs nothing until it is reset."""
    faulty_fs.fail("fsync", errno.EIO, count=1_000_000)
    return faulty_fs


@pytest.fixture
def patient(make_daemon):
    """A plugin of a daemon that goes on trying."""
    return SidecarCheckpointIO(client=make_daemon("--retry-timeout", "60s").client())


def test_nobody_hears_of_what_is_pending(pl, patient, failing):
    hearing, logger = Hearing(), make_logger(pl)

    class Model(type(make_model(pl))):
        """Its storage fails until the third epoch."""

        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                wait_until(lambda: int(failing.ask("calls fsync")) > 0, "the daemon to try")
                assert hearing.heard == [] and logger.told == []
                failing.tell("reset")
                patient.client.flush()
            if self.current_epoch == 3:
                assert hearing.heard[:2] == ["epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt"]
                assert len(logger.told) > 0

    options = {"logger": logger}
    trainer = make_trainer(pl, failing.folder, patient, 4, [hearing], options, save_top_k=-1)
    trainer.fit(Model())
    assert len(hearing.heard) == 4


def test_teardown_shows_how_it_goes_on(pl, patient, failing, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    shown = []

    class Bar(importlib.import_module("tqdm.auto").tqdm):
        """Lets the storage go on when it has been shown."""

        def update(self, n=1):
            if self.desc.startswith("Making") and not shown:
                failing.tell("reset")
                shown.append(self.n)
            return super().update(n)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    options = {"enable_progress_bar": True}
    make_trainer(pl, failing.folder, patient, 1, options=options).fit(make_model(pl))
    last = capsys.readouterr().out.rpartition("Making checkpoints durable: 100%")[2]
    assert shown and "B/s" in last, last
