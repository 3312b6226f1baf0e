"""Whole programs: what Lightning does with checkpoints, call by call and file by file."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import signal

import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from lightning_models import make_model, make_trainer, quiet_trainer
from mounts import needs_root, tmpfs
from objects import same


class Recorder(SidecarCheckpointIO):
    """Notes each call, and the name it is about."""

    def __init__(self, client):
        super().__init__(client=client)
        self.calls = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.calls.append(f"save {os.path.basename(path)}")
        super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        self.calls.append(f"load {os.path.basename(path)}")
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path):
        self.calls.append(f"remove {os.path.basename(path)}")
        super().remove_checkpoint(path)

    def teardown(self):
        self.calls.append("teardown")
        super().teardown()


@pytest.fixture
def recorder(client):
    return Recorder(client)


def test_each_call_in_its_place(pl, recorder, tmp_path):
    model = make_model(pl)
    model.test_step = lambda batch, batch_idx: None
    trainer = make_trainer(pl, tmp_path, recorder, save_last=True)
    trainer.fit(model)
    e0, e1 = "epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt"
    assert recorder.calls == [
        f"save {e0}",
        "save last.ckpt",
        f"save {e1}",
        f"remove {e0}",
        "save last.ckpt",
        "teardown",
    ]
    assert sorted(os.listdir(tmp_path)) == [e1, "last.ckpt"]

    recorder.calls.clear()
    trainer.test(model, model.train_dataloader(), ckpt_path="best")
    trainer.save_checkpoint(tmp_path / "manual.ckpt")
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, ckpt_path="last")
    assert recorder.calls[:4] == [f"load {e1}", "teardown", "save manual.ckpt", "load last.ckpt"]
    assert recorder.calls[-1] == "teardown"
    assert trainer.global_step == 15
    assert sorted(os.listdir(tmp_path)) == ["epoch=2-step=15.ckpt", "last.ckpt", "manual.ckpt"]


def test_last_as_a_link(pl, plugin, tmp_path):
    trainer = make_trainer(
        pl, tmp_path, plugin, 3, save_last="link", save_top_k=1, monitor="epoch", mode="max"
    )
    trainer.fit(make_model(pl))
    assert sorted(os.listdir(tmp_path)) == ["epoch=2-step=15.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=2-step=15.ckpt"
    assert plugin.load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 15


def test_interrupted_in_mid_epoch(pl, plugin, tmp_path):
    class Interrupted(type(make_model(pl))):
        """As by control-C."""

        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 7:
                raise KeyboardInterrupt

    saves = [pl.callbacks.OnExceptionCheckpoint(tmp_path, "interrupted")]
    trainer = make_trainer(pl, tmp_path, plugin, 2, saves)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(Interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(os.listdir(tmp_path)) == ["epoch=0-step=5.ckpt", "interrupted.ckpt"]
    resumed = make_trainer(pl, tmp_path, plugin, 2, saves)
    resumed.fit(make_model(pl), ckpt_path=tmp_path / "interrupted.ckpt")
    # A run that ends well has its file removed, after the plugin is torn down.
    plugin.teardown()
    assert "interrupted.ckpt" not in os.listdir(tmp_path)


def test_tuner_saves_loads_and_removes(pl, recorder, tmp_path):
    tuning = importlib.import_module(f"{pl.__name__}.tuner")

    class Tuned(type(make_model(pl))):
        """Has what a tuner sets."""

        def __init__(self):
            super().__init__()
            self.lr, self.batch_size = 0.01, 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            data = torch.utils.data.TensorDataset(torch.randn(40, 8))
            return torch.utils.data.DataLoader(data, batch_size=self.batch_size)

    model = Tuned()
    before = copy.deepcopy(model.state_dict())
    trainer = quiet_trainer(pl, max_epochs=1, plugins=[recorder], default_root_dir=tmp_path)
    tuner = tuning.Tuner(trainer)
    found = tuner.lr_find(model, num_training=9, early_stop_threshold=None)
    assert len(found.results["loss"]) == 9
    tuner.scale_batch_size(model, max_trials=2, steps_per_trial=1)
    assert same(dict(model.state_dict()), dict(before))
    recorder.client.flush()
    done = [call.split()[0] for call in recorder.calls if call != "teardown"]
    assert done[:3] == ["save", "load", "remove"] and done[-1] == "remove"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".ckpt")] == []


def test_requeue_of_slurm_finds_it_durable(pl, plugin, tmp_path, monkeypatch):
    signals = importlib.import_module(f"{pl.__name__}.trainer.connectors.signal_connector")
    requeued = []

    def requeue(command):
        requeued.append((command[:2], os.listdir(tmp_path)))
        return 0

    class Requeued(type(make_model(pl))):
        """SLURM tells it that its time is up."""

        def on_train_batch_end(self, *arguments):
            if self.global_step == 3:
                self.trainer._signal_connector._slurm_sigusr_handler_fn(signal.SIGUSR1, None)

    monkeypatch.setattr(signals, "call", requeue)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trainer = quiet_trainer(
        pl, max_epochs=1, plugins=[plugin], enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(Requeued())
    assert requeued == [(["scontrol", "requeue"], ["hpc_ckpt_1.ckpt"])]


def test_one_plugin_in_many_runs(pl, recorder, tmp_path):
    one = make_trainer(pl, tmp_path / "one", recorder, 1)
    two = make_trainer(pl, tmp_path / "two", recorder, 1)
    model = make_model(pl)
    for trainer in (one, two):
        trainer.fit(model)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(model)
    for folder in ("one", "two"):
        assert os.listdir(tmp_path / folder) == ["epoch=1-step=10.ckpt"]


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_of_a_trainer(pl, plugin, tmp_path, copier):
    boring = importlib.import_module(f"{pl.__name__}.demos.boring_classes")
    few = {"limit_train_batches": 2, "limit_val_batches": 0}
    trainer = make_trainer(pl, tmp_path, plugin, 1, options=few)
    trainer.fit(boring.BoringModel())
    other = copier(trainer)
    assert other.strategy.checkpoint_io is not plugin
    assert other.strategy.checkpoint_io.client.address == plugin.client.address
    other.fit_loop.max_epochs = 2
    other.fit(boring.BoringModel())
    assert os.listdir(tmp_path) == ["epoch=1-step=4.ckpt"]


def test_two_plugins_are_too_many(pl, plugin):
    strategies = importlib.import_module(f"{pl.__name__}.strategies")
    strategy = strategies.SingleDeviceStrategy(torch.device("cpu"), checkpoint_io=plugin)
    with pytest.raises(Exception, match="checkpoint_io set through both"):
        quiet_trainer(pl, accelerator="auto", devices="auto", strategy=strategy, plugins=[plugin])
    with pytest.raises(Exception, match="multiple values for CheckpointIO"):
        quiet_trainer(pl, plugins=[plugin, plugin])


class TestFabric:
    @pytest.fixture(params=["lightning.fabric", "lightning_fabric"])
    def fabric(self, request, plugin):
        fabric = importlib.import_module(request.param)
        return fabric.Fabric(accelerator="cpu", devices=1, plugins=[plugin])

    def test_saves_and_loads(self, fabric, tmp_path):
        model = torch.nn.Linear(2, 2)
        model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters()))
        path = tmp_path / "new" / "a.ckpt"
        fabric.save(path, {"model": model, "optimizer": optimizer, "step": 3})
        weight = model.weight.clone()
        with torch.no_grad():
            model.weight.zero_()
        state = {"model": model, "optimizer": optimizer, "step": 0}
        assert fabric.load(path, state) == {}
        assert state["step"] == 3 and torch.equal(model.weight, weight)
        assert os.listdir(path.parent) == ["a.ckpt"]

    @needs_root
    def test_end_of_the_program_waits_and_reports(self, run_python, tmp_path):
        with tmpfs(tmp_path / "full", "size=2m") as full:
            result = run_python(
                """
                import sys, torch
                from lightning.fabric import Fabric
                from ckptd.lightning import SidecarCheckpointIO
                fabric = Fabric(accelerator="cpu", devices=1, plugins=[SidecarCheckpointIO()])
                for folder in sys.argv[1:]:
                    fabric.save(f"{folder}/a.ckpt", {"x": torch.zeros(1_000_000)})
                """,
                tmp_path,
                full,
            )
        assert (tmp_path / "a.ckpt").stat().st_size > 4_000_000
        (report,) = result.stderr.splitlines()
        assert report.startswith(f"{full}/a.ckpt") and "No space left" in report
