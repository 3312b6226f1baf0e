"""The plugin in real Trainers of both packages, and the rules of CheckpointIO."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import sys

import ckptd
import pytest
import torch
from ckptd.lightning import SidecarCheckpointIO
from ckptd.lightning.packages import FABRIC, classes
from lightning_models import make_model, make_trainer
from objects import same
from test_failures import tmpfs


class TestTrainer:
    def test_is_a_plugin_of_both_packages(self, plugin):
        from lightning.fabric.plugins import CheckpointIO as One
        from lightning_fabric.plugins import CheckpointIO as Other

        assert isinstance(plugin, One) and isinstance(plugin, Other)
        assert plugin  # Lightning asks

    def test_fit_resume_equals_uninterrupted(self, pl, plugin, tmp_path):
        whole = make_model(pl)
        make_trainer(pl, tmp_path / "stock", None, 4, save_last=True).fit(whole)

        first = make_model(pl)
        make_trainer(pl, tmp_path / "a", plugin, 2, save_last=True).fit(first)
        second = make_model(pl)
        resumed = make_trainer(pl, tmp_path / "b", plugin, 4, save_last=True)
        resumed.fit(second, ckpt_path=str(tmp_path / "a" / "last.ckpt"))

        assert same(dict(second.state_dict()), dict(whole.state_dict()))
        ours = torch.load(tmp_path / "b" / "last.ckpt", weights_only=False)
        stock = torch.load(tmp_path / "stock" / "last.ckpt", weights_only=False)
        assert list(ours) == list(stock)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert same(ours[part], stock[part]), part
        loaded = type(second).load_from_checkpoint(tmp_path / "b" / "last.ckpt")
        assert same(dict(loaded.state_dict()), dict(whole.state_dict()))

    def test_top_k_and_last_are_what_is_left(self, pl, plugin, tmp_path):
        trainer = make_trainer(
            pl,
            tmp_path,
            plugin,
            max_epochs=5,
            save_top_k=2,
            monitor="epoch",
            mode="max",
            save_last=True,
        )
        trainer.fit(make_model(pl))
        names = ["epoch=3-step=20.ckpt", "epoch=4-step=25.ckpt", "last.ckpt"]
        assert sorted(os.listdir(tmp_path)) == names
        assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 25

    def test_data_workers_are_forked_between_saves(self, pl, plugin, tmp_path):
        model = make_model(pl)
        data = torch.utils.data.TensorDataset(torch.randn(40, 8))
        loader = torch.utils.data.DataLoader(
            data, batch_size=8, num_workers=1, multiprocessing_context="fork"
        )
        trainer = make_trainer(pl, tmp_path, plugin, 3, save_top_k=-1)
        trainer.fit(model, loader)
        assert len(os.listdir(tmp_path)) == 3

    def test_plugin_works_through_a_strategy_and_after_fit(self, pl, plugin, tmp_path):
        strategies = importlib.import_module(f"{pl.__name__}.strategies")
        strategy = strategies.SingleDeviceStrategy(torch.device("cpu"), checkpoint_io=plugin)
        trainer = pl.Trainer(
            max_steps=2,
            strategy=strategy,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(make_model(pl))
        trainer.save_checkpoint(tmp_path / "manual.ckpt")
        assert plugin.load_checkpoint(tmp_path / "manual.ckpt")["global_step"] == 2
        with pytest.raises(TypeError, match="is not supported for `SidecarCheckpointIO`"):
            trainer.save_checkpoint(tmp_path / "manual.ckpt", storage_options={"a": 1})


class TestContract:
    def test_load_is_on_the_cpu_and_missing_is_said(self, plugin, tmp_path):
        plugin.save_checkpoint({"x": torch.ones(2)}, tmp_path / "a.ckpt")
        loaded = plugin.load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
        assert loaded["x"].device.type == "cpu"
        with pytest.raises(FileNotFoundError, match="^Checkpoint file not found: "):
            plugin.load_checkpoint(str(tmp_path / "none.ckpt"))
        with pytest.raises(FileNotFoundError, match="^Checkpoint file not found: not here"):
            plugin.load_checkpoint("not here")

    def test_one_order_for_all_plugins(self, plugin, daemon, tmp_path):
        other = SidecarCheckpointIO(client=daemon.client(job="another"))
        for value in range(3):
            plugin.save_checkpoint({"x": torch.full((1_000_000,), value)}, tmp_path / "a.ckpt")
        assert other.load_checkpoint(tmp_path / "a.ckpt")["x"][0] == 2
        plugin.remove_checkpoint(tmp_path / "a.ckpt")
        plugin.remove_checkpoint(tmp_path / "a.ckpt")
        with pytest.raises(FileNotFoundError):
            other.load_checkpoint(tmp_path / "a.ckpt")

    def test_durable_means_durable(self, client, tmp_path):
        plugin = SidecarCheckpointIO(wait="durable", client=client)
        plugin.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
        assert os.listdir(tmp_path) == ["a.ckpt"]

    def test_teardown_flushes_and_the_plugin_goes_on(self, plugin, tmp_path):
        for i in range(3):
            plugin.save_checkpoint({"x": torch.zeros(1_000_000)}, tmp_path / f"{i}.ckpt")
            plugin.teardown()
            assert (tmp_path / f"{i}.ckpt").exists()
        plugin.teardown()

    def test_copies_and_pickles(self, client, tmp_path):
        plugin = SidecarCheckpointIO(wait="durable", client=client)
        plugin.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
        for other in (copy.deepcopy(plugin), pickle.loads(pickle.dumps(plugin))):
            assert (other.wait, other.client.address) == ("durable", client.address)
            other.save_checkpoint({"x": 2}, tmp_path / "a.ckpt")
            assert other.load_checkpoint(tmp_path / "a.ckpt") == {"x": 2}

    def test_wrong_wait(self):
        with pytest.raises(ValueError, match='use "accepted" or "durable"'):
            SidecarCheckpointIO(wait="never")

    def test_either_package_alone_is_enough(self, monkeypatch):
        wanted = (FABRIC, "plugins", "CheckpointIO")
        both = classes(*wanted)
        for hidden in range(2):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, both[hidden].__module__.split(".io")[0], None)
                assert classes(*wanted) == (both[1 - hidden],)
        for base in both:
            monkeypatch.setitem(sys.modules, base.__module__.split(".io")[0], None)
        with pytest.raises(ImportError, match="Install one of them"):
            classes(*wanted)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: needs root")
class TestFailure:
    """A disk of 2 MB, and checkpoints of 4 MB."""

    BIG = {"x": torch.zeros(1_000_000)}

    @pytest.fixture
    def full(self, tmp_path):
        with tmpfs(tmp_path / "mount", "size=2m") as folder:
            yield folder

    def fail(self, plugin, full):
        """A save that fails after it was accepted, as the plugin does not know yet."""
        plugin.save_checkpoint(self.BIG, full / "big.ckpt")
        (save,) = ckptd.client.session_for(plugin.client.address).ledger.pending(
            plugin.client._owner
        )
        session = ckptd.client.session_for(plugin.client.address)
        watch = ckptd.v1.checkpoint_pb2.WatchSavesRequest(name=save.name)
        for _ in session.call("WatchSaves", watch, 30):
            pass

    def test_next_save_is_accepted_and_then_raises_once(self, plugin, full, tmp_path):
        self.fail(plugin, full)
        with pytest.raises(ckptd.SaveError, match="big.ckpt") as caught:
            plugin.save_checkpoint({"x": 1}, tmp_path / "next.ckpt")
        assert caught.value.reason == "STORAGE_FULL"
        assert plugin.load_checkpoint(tmp_path / "next.ckpt") == {"x": 1}
        plugin.save_checkpoint({"x": 2}, tmp_path / "next.ckpt")
        plugin.teardown()

    def test_teardown_raises_once(self, plugin, full):
        plugin.save_checkpoint(self.BIG, full / "big.ckpt")
        with pytest.raises(ckptd.SaveError, match="big.ckpt"):
            plugin.teardown()
        plugin.teardown()

    def test_exception_in_flight_is_not_masked(self, plugin, full, caplog):
        plugin.save_checkpoint(self.BIG, full / "big.ckpt")
        with pytest.raises(ValueError, match="train boom") as caught:
            try:
                raise ValueError("train boom")
            finally:
                plugin.teardown()
        assert "big.ckpt" in caplog.text
        if sys.version_info >= (3, 11):
            assert "big.ckpt" in caught.value.__notes__[0]
        plugin.teardown()

    def test_trainer_that_fails_keeps_its_own_error(self, pl, plugin, full, caplog):
        model = make_model(pl)
        model.fail_at = 7
        model.register_buffer("ballast", torch.zeros(1_000_000))
        trainer = make_trainer(pl, full, plugin, save_on_exception=True)
        with pytest.raises(ValueError, match="train boom"):
            trainer.fit(model)
        assert "No space left" in caplog.text
        assert os.listdir(full) == []

    def test_trainer_raises_a_failed_save_even_inside_an_except_block(self, pl, plugin, full):
        model = make_model(pl)
        model.register_buffer("ballast", torch.zeros(1_000_000))
        try:
            raise RuntimeError("an earlier attempt")
        except RuntimeError:
            with pytest.raises(ckptd.SaveError) as caught:
                make_trainer(pl, full, plugin, 1).fit(model)
        assert caught.value.reason == "STORAGE_FULL"
