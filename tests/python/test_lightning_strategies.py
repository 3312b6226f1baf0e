"""Strategies that never call a CheckpointIO refuse ours, and say what to do."""

from __future__ import annotations

import importlib

import pytest
import torch
from lightning_models import quiet_trainer


@pytest.fixture
def strategies(pl):
    return importlib.import_module(f"{pl.__name__}.strategies")


def on_the_cpu(strategy_class):
    """Lightning refuses these without a GPU, but for classes of one's own."""
    return type("OnTheCPU", (strategy_class,), {})


@pytest.mark.parametrize("way", ["plugins", "checkpoint_io"])
def test_sharded_fsdp(pl, strategies, plugin, way):
    arguments = {"checkpoint_io": plugin} if way == "checkpoint_io" else {}
    strategy = on_the_cpu(strategies.FSDPStrategy)(state_dict_type="sharded", **arguments)
    with pytest.raises(TypeError, match='Use FSDPStrategy\\(state_dict_type="full"\\)'):
        quiet_trainer(pl, strategy=strategy, plugins=[] if arguments else [plugin])


def test_model_parallel(pl, strategies, plugin):
    with pytest.raises(TypeError, match="save_distributed_checkpoint=False"):
        quiet_trainer(pl, strategy=strategies.ModelParallelStrategy(), plugins=[plugin])
    strategy = strategies.ModelParallelStrategy(save_distributed_checkpoint=False)
    assert quiet_trainer(pl, strategy=strategy, plugins=[plugin]).strategy.checkpoint_io is plugin


def connect(connector_class, strategy, plugin):
    """What a Trainer and a Fabric do with their parts, where the strategy's package is missing."""
    connector = object.__new__(connector_class)
    connector.strategy, connector.checkpoint_io = strategy, plugin
    connector.accelerator = connector.precision_plugin = connector.precision = None
    connector._lazy_init_strategy()


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_fabric(package, plugin):
    fabric = importlib.import_module(package)
    strategies = importlib.import_module(f"{package}.strategies")
    for strategy in (
        on_the_cpu(strategies.FSDPStrategy)(),
        strategies.ModelParallelStrategy(lambda model, mesh: model),
    ):
        with pytest.raises(TypeError, match="in Fabric it writes checkpoints by itself"):
            fabric.Fabric(accelerator="cpu", devices=1, strategy=strategy, plugins=[plugin])
    deepspeed = object.__new__(strategies.DeepSpeedStrategy)  # without deepspeed there is no other
    with pytest.raises(TypeError, match="DeepSpeedStrategy cannot save.*Use DDPStrategy"):
        connect(importlib.import_module(f"{package}.connector")._Connector, deepspeed, plugin)


def test_deepspeed(pl, strategies, plugin):
    deepspeed = object.__new__(strategies.DeepSpeedStrategy)
    module = f"{pl.__name__}.trainer.connectors.accelerator_connector"
    with pytest.raises(TypeError, match="DeepSpeedStrategy cannot save.*Use DDPStrategy"):
        connect(importlib.import_module(module)._AcceleratorConnector, deepspeed, plugin)


def test_others_take_it(pl, strategies, plugin):
    for strategy in (
        strategies.SingleDeviceStrategy(torch.device("cpu")),
        strategies.DDPStrategy(),
        on_the_cpu(strategies.FSDPStrategy)(state_dict_type="full"),
    ):
        assert quiet_trainer(pl, strategy=strategy, plugins=[plugin]).strategy._checkpoint_io is plugin
