"""The plugin for XLA strategies. tests/conformance/xla/run runs all of it, with torch_xla on the CPU."""

from __future__ import annotations

import argparse
import importlib
import os
import zipfile
from collections import OrderedDict, namedtuple

import pytest
import torch
from ckptd.lightning import XLASidecarCheckpointIO
from ckptd.lightning.xla import to_cpu

os.environ.setdefault("PJRT_DEVICE", "CPU")

FABRIC = ["lightning.fabric", "lightning_fabric"]
TRAINERS = ["lightning.pytorch", "pytorch_lightning"]


@pytest.fixture
def plugin(client):
    return XLASidecarCheckpointIO(client=client)


@pytest.fixture
def xla():
    """The device of torch_xla."""
    reason = "torch_xla is not installed; tests/conformance/xla/run makes an environment with it"
    return pytest.importorskip("torch_xla", reason=reason).device()


@pytest.mark.parametrize("package", FABRIC + TRAINERS)
def test_xla_strategies_take_it(package, plugin):
    for name in ("XLAStrategy", "SingleDeviceXLAStrategy", "XLAFSDPStrategy"):
        strategy_class = getattr(importlib.import_module(f"{package}.strategies"), name, None)
        if strategy_class is None:  # the Trainer has no XLAFSDPStrategy
            continue
        strategy = object.__new__(strategy_class)  # whose __init__ demands torch_xla
        strategy.checkpoint_io = plugin
        assert strategy.checkpoint_io is plugin, name


def test_containers_are_reduced_and_the_original_is_untouched(plugin, tmp_path):
    point = namedtuple("point", "x y")(1, (2,))
    shared = torch.arange(4.0)
    checkpoint = OrderedDict(
        state_dict=OrderedDict(a=shared, b=shared[2:]),
        point=point,
        hparams=argparse.Namespace(sizes=(1, 2), kind=torch.nn.Linear),
        tags={"x"},
    )
    checkpoint["itself"] = checkpoint
    reduced = to_cpu(checkpoint)
    assert type(reduced) is type(reduced["state_dict"]) is dict
    assert reduced["itself"] is reduced
    assert reduced["point"] == [1, [2]]
    assert vars(reduced["hparams"]) == {"sizes": [1, 2], "kind": torch.nn.Linear}
    assert reduced["tags"] == {"x"}
    assert checkpoint["point"] is point and checkpoint["hparams"].sizes == (1, 2)

    plugin.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    loaded = plugin.load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert type(loaded["state_dict"]) is dict
    loaded["state_dict"]["a"][2] = 9
    assert loaded["state_dict"]["b"][0] == 9, "views of one memory stay that"


def test_what_cannot_be_copied_is_left_to_pickle():
    class Stubborn:
        def __copy__(self):
            raise RuntimeError("no copies")

    stubborn = Stubborn()
    assert to_cpu([stubborn]) == [stubborn]


def records(path):
    """What a checkpoint holds, by the names of its records without the archive's own."""
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def state(device):
    """What a Trainer on XLA would save, without parameters."""
    weight = torch.arange(6.0, device=device).reshape(2, 3)
    return {
        "state_dict": OrderedDict(a=weight, tied=weight, row=weight[1], half=weight.half()),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight * 2}}}],
        "hyper_parameters": argparse.Namespace(betas=(0.9, 0.99)),
        "on_cpu": torch.ones(2),
    }


@pytest.mark.parametrize("package", FABRIC)
def test_file_is_what_lightnings_own_writes(package, xla, plugin, tmp_path):
    stock = importlib.import_module(f"{package}.plugins.io.xla").XLACheckpointIO()
    checkpoint = state(xla)
    stock.save_checkpoint(checkpoint, tmp_path / "stock.ckpt")
    plugin.save_checkpoint(checkpoint, tmp_path / "ours.ckpt")
    plugin.teardown()
    ours, theirs = records(tmp_path / "ours.ckpt"), records(tmp_path / "stock.ckpt")
    for name in ("data.pkl", *(name for name in theirs if name.startswith("data/"))):
        assert ours[name] == theirs[name], name
    loaded = stock.load_checkpoint(tmp_path / "ours.ckpt", weights_only=False)
    assert loaded["state_dict"]["tied"][1, 2] == 5


def test_parameters_come_to_the_cpu(xla, plugin, tmp_path):
    weight = torch.nn.Parameter(torch.ones(2, device=xla))
    frozen = torch.nn.Parameter(torch.full((3,), 2.0, device=xla), requires_grad=False)
    plugin.save_checkpoint({"w": weight, "again": weight, "f": frozen}, tmp_path / "a.ckpt")
    plugin.teardown()
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)  # without map_location
    assert isinstance(loaded["w"], torch.nn.Parameter) and loaded["w"].requires_grad
    assert loaded["w"].device.type == "cpu" and loaded["again"] is loaded["w"]
    assert loaded["f"].tolist() == [2, 2, 2] and not loaded["f"].requires_grad
    assert weight.device.type == "xla"


def test_omegaconf_becomes_plain(xla, plugin, tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": [1, {"b": 2}]})
    plugin.save_checkpoint({"config": config, "part": config.a}, tmp_path / "a.ckpt")
    loaded = plugin.load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded == {"config": {"a": [1, {"b": 2}]}, "part": [1, {"b": 2}]}


@pytest.mark.parametrize("package", TRAINERS)
def test_trainer_on_xla(package, xla, plugin, tmp_path):
    pl = importlib.import_module(package)
    accelerators = importlib.import_module(f"{package}.accelerators")
    strategies = importlib.import_module(f"{package}.strategies")
    boring = importlib.import_module(f"{package}.demos.boring_classes")

    class OnTheCPU(accelerators.XLAAccelerator):
        """Lightning takes it for available only where there is a TPU."""

        is_available = staticmethod(lambda: True)
        auto_device_count = staticmethod(lambda: 1)
        parse_devices = staticmethod(lambda devices: devices)
        get_parallel_devices = staticmethod(lambda devices: [torch.device("xla", 0)])

    class Model(boring.BoringModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["weight"] = self.layer.weight

    def trainer(steps):
        return pl.Trainer(
            max_steps=steps,
            accelerator=OnTheCPU(),
            devices=1,
            strategy=strategies.SingleDeviceXLAStrategy(device=0, checkpoint_io=plugin),
            callbacks=[pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_last=True)],
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = Model()
    trainer(2).fit(model)
    assert sorted(os.listdir(tmp_path)) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(saved["weight"], model.layer.weight.cpu())
    resumed = trainer(4)
    resumed.fit(Model(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.global_step == 4
