"""Finds the Trainer that calls, and what it trains: whose hooks an overlapped save has to wait in."""

from __future__ import annotations

from typing import Any, List, Optional

from ..frames import callers


def trainer_above() -> Optional[Any]:
    """The Trainer that has called, by way of its strategy or of the user's code."""
    for frame in callers():
        owner = frame.f_locals.get("self")
        if hasattr(type(owner), "progress_bar_callback"):
            return owner
    return None


def trained_by_caller(io: Any) -> List[Any]:
    """The optimizers and the module of the Trainer that saves through `io`, further up the stack.

    Empty where it has no optimizer any more, or none yet. Raises ValueError where no Trainer does.
    """
    for frame in callers():
        saves = frame.f_code.co_name == "save_checkpoint"
        strategy: Any = frame.f_locals.get("self") if saves else None
        if getattr(strategy, "checkpoint_io", None) is io and hasattr(strategy, "optimizers"):
            optimizers = list(strategy.optimizers)
            return [*optimizers, strategy.lightning_module] if optimizers else []
    raise ValueError(
        f"{type(io).__name__}(overlap=True): this save comes from no Trainer, so that no step of an "
        "optimizer waits for it. Leave overlap out, or use ckptd.save(…, overlap=optimizer)."
    )
