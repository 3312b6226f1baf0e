"""Has memory made warm as a fit begins, so that its first save finds it.

A CheckpointIO hears of training when it is to save. How large that will be is known from the first
step of the optimizer on, when its state exists: torch tells of each step of any optimizer, and the
Trainer that runs the fit stands further up the stack.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable, Iterator, Optional, Set

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .frames import callers

# Functions of Lightning that run a fit, in this process or in one that a launcher has made; each
# has a `trainer`.
_RUNNERS = ("_call_and_handle_interrupt", "_wrapping_function")
# Pickle, and headers and alignment of the record, for each tensor and for the rest.
_BYTES_PER_TENSOR = 640
_BYTES_OF_THE_REST = 64 << 10
# Fits that are run otherwise are not found out again and again.
_MAX_STEPS = 1000

_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_hook: Any = None


class Watch:
    """Calls `reserve(io, bytes of a checkpoint)` once a fit that saves through `io` has begun.

    Called again where it turns out larger, as a second optimizer makes its first step. Lives as
    long as somebody holds it.
    """

    def __init__(self, io: Any, reserve: Callable[[Any, int], None]) -> None:
        global _hook
        self._io = weakref.ref(io)
        self._reserve = reserve
        self._steps = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        _watches.add(self)
        if _hook is None:
            _hook = register_optimizer_step_post_hook(_after_step)

    def look(self, trainer: Any, optimizer: Any) -> bool:
        """Takes note of the first step of an optimizer; returns whether to go on."""
        self._steps += 1
        io = self._io()
        if trainer is None or io is None or trainer.strategy.checkpoint_io is not io:
            return self._steps < _MAX_STEPS
        if optimizer not in self._seen:
            self._seen.add(optimizer)
            if trainer.is_global_zero and trainer.checkpoint_callbacks:
                self._reserve(io, checkpoint_bytes(trainer))
        return any(one not in self._seen for one in trainer.strategy.optimizers)


def checkpoint_bytes(trainer: Any) -> int:
    """About how large a checkpoint of this fit is now: model and optimizers."""
    storages: Set[int] = set()
    size = _BYTES_OF_THE_REST
    for tensor in _tensors(trainer):
        size += _BYTES_PER_TENSOR
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages.add(storage._cdata)
            size += storage.nbytes()
    return size


def _tensors(trainer: Any) -> Iterator[torch.Tensor]:
    yield from trainer.lightning_module.parameters()
    yield from trainer.lightning_module.buffers()
    for optimizer in trainer.strategy.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def running_trainer() -> Optional[Any]:
    """The Lightning Trainer whose fit this code is called from; None where there is none."""
    for frame in callers():
        if frame.f_code.co_name in _RUNNERS:
            trainer = frame.f_locals.get("trainer")
            if trainer is not None:
                return trainer
    return None


def _after_step(optimizer: Any, *_: Any) -> None:
    global _hook
    trainer = running_trainer()
    for watch in list(_watches):
        if not watch.look(trainer, optimizer):
            _watches.discard(watch)
    if not _watches and _hook is not None:
        _hook.remove()
        _hook = None
