"""The callback: a Checkpoint that hears when checkpoints are durable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Union
from weakref import proxy

import torch

from ..errors import SaveError
from ..save import Save
from .io import SidecarCheckpointIO
from .packages import TRAINER, classes
from .follower import Follower

_Bases = classes(TRAINER, "callbacks", "Checkpoint")


class SidecarCheckpoint(*_Bases):  # type: ignore[misc]
    """Hears of each checkpoint of its Trainer when it is durable; a base for callbacks that save.

    Put it beside a ModelCheckpoint, behind it in the list, or derive from it and call
    `save_checkpoint` where a checkpoint is due. Like any Checkpoint it keeps the Trainer from
    adding a ModelCheckpoint of its own.

    `on_checkpoint_durable` and `on_checkpoint_failed` are called once for each save through the
    Trainer's plugin, in the process that saved, on the Trainer's thread: at the end of a training
    batch (the daemon is asked at most ten times a second), of each validation and training epoch,
    and, for all that is left, when the Trainer tears its strategy down, before fit returns or
    raises. They must make no collective call, such as trainer.save_checkpoint.

    Until the end of the run, loggers hear `after_save_checkpoint` only when the checkpoints that
    were accepted before are durable.

    last_model_path: the newest durable checkpoint.
    best_model_path, best_model_score, current_score, best_k_models: for a subclass to set; what
    loggers and `ckpt_path="best"` read.
    """

    monitor: Optional[str] = None
    mode = "min"
    save_top_k = -1

    def __init__(self) -> None:
        super().__init__()
        self.last_model_path = ""
        self.best_model_path = ""
        self.best_model_score: Optional[torch.Tensor] = None
        self.current_score: Optional[torch.Tensor] = None
        self.best_k_models: Dict[str, torch.Tensor] = {}
        self._follower: Optional[Follower] = None

    def on_checkpoint_durable(self, trainer: Any, save: Save) -> None:
        """Called when `save` is durable at save.path."""

    def on_checkpoint_failed(self, trainer: Any, save: Save, error: SaveError) -> None:
        """Called when `save` has failed or was cancelled.

        The plugin raises `error` all the same, at the next save or at the end.
        """

    def save_checkpoint(
        self, trainer: Any, path: Union[str, Path], weights_only: bool = False
    ) -> None:
        """Saves what trainer.save_checkpoint does, and has loggers told when it is durable.

        Every rank must call it.
        """
        trainer.save_checkpoint(path, weights_only)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begins to follow. Raises ValueError if the Trainer's plugin is none of ours."""
        self._end()
        plugin = _plugin_of(trainer)

        def durable(save: Save) -> None:
            self.last_model_path = save.path
            self.on_checkpoint_durable(trainer, save)

        def failed(save: Save, error: SaveError) -> None:
            self.on_checkpoint_failed(trainer, save, error)

        self._follower = Follower(trainer, durable, failed, trainer.loggers)
        plugin.follow(self._follower)

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        """Looks for saves that have ended."""
        self._look(at_once=False)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Looks for saves that have ended."""
        self._look()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Looks for saves that have ended."""
        self._look()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leaves it to the end, which comes: other callbacks save now."""

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Ends what a strategy has not ended that tears no plugin down."""
        self._end()

    def _look(self, at_once: bool = True) -> None:
        if self._follower is not None:
            self._follower.look(at_once)

    def _end(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.end()

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_follower": None}


def _plugin_of(trainer: Any) -> SidecarCheckpointIO:
    plugin = io = trainer.strategy.checkpoint_io
    while not isinstance(plugin, SidecarCheckpointIO):
        plugin = getattr(plugin, "checkpoint_io", None)
        if plugin is None:
            raise ValueError(
                f"SidecarCheckpoint: the Trainer saves through {type(io).__name__}, which does not"
                " tell when a checkpoint is durable. Use Trainer(plugins=[SidecarCheckpointIO()])."
            )
    return plugin
