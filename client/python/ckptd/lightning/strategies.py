"""Tells which strategies write checkpoints themselves and never call a CheckpointIO."""

from __future__ import annotations

from types import FrameType
from typing import Any, Optional

# Where a Trainer and a Fabric give their strategy its plugins.
_LIGHTNING_CONNECTS = "_lazy_init_strategy"


def check_strategy(plugin: Any, asker: FrameType) -> None:
    """Raises TypeError if `asker` is about to give `plugin` to a strategy that would not call it.

    asker: the frame that asks for the plugin's truth, which Lightning does just before.
    """
    if asker.f_code.co_name != _LIGHTNING_CONNECTS:
        return
    strategy = getattr(asker.f_locals.get("self"), "strategy", None)
    reason = why_unusable(strategy)
    if reason is not None:
        raise TypeError(
            f"{type(strategy).__name__} cannot save through {type(plugin).__name__}: {reason}, or"
            " leave the plugin out."
        )


def why_unusable(strategy: Any) -> Optional[str]:
    """What a strategy does instead of calling its CheckpointIO, and what to do; None if it calls it.

    By the names of its classes, so that it is the same for each of Lightning's packages.
    """
    kinds = {kind.__name__: kind for kind in type(strategy).__mro__}
    if "DeepSpeedStrategy" in kinds:
        return (
            "DeepSpeed writes a folder for each checkpoint by itself. Use DDPStrategy, or, in a"
            ' Trainer, FSDPStrategy(state_dict_type="full")'
        )
    own = kinds.get("FSDPStrategy") or kinds.get("ModelParallelStrategy")
    if own is None:
        return None
    if "fabric" in own.__module__:
        return (
            "in Fabric it writes checkpoints by itself. Use DDPStrategy, or a Trainer with"
            " strategy=FSDPStrategy(state_dict_type=\"full\")"
        )
    if getattr(strategy, "_state_dict_type", None) == "sharded":
        return (
            'with state_dict_type="sharded" each rank writes its part by itself. Use'
            ' FSDPStrategy(state_dict_type="full")'
        )
    if getattr(strategy, "_save_distributed_checkpoint", False):
        return (
            "each rank writes its part by itself. Use"
            " ModelParallelStrategy(save_distributed_checkpoint=False)"
        )
    return None
