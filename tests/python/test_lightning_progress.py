"""Nobody is shown how a flush goes on who does not want it; tests/faults has who does."""

from __future__ import annotations

from ckptd.lightning import progress
from lightning_models import make_model, make_trainer


def test_a_trainer_without_progress_bar_stays_quiet(pl, plugin, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "_show", lambda saves, done: shown.append(saves))
    make_trainer(pl, tmp_path, plugin, 1).fit(make_model(pl))
    plugin.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    plugin.teardown()
    assert not shown
