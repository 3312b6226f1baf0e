"""Follows the saves of a Trainer until they end, and tells who waits for that."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Tuple

from ..errors import SaveError
from ..save import Save
from .in_flight import exception_in_flight

_log = logging.getLogger("ckptd")

# Between two looks where looks may come as often as batches end: each asks the daemon.
_LOOK_SECONDS = 0.1


@dataclass
class _Announcement:
    """A word to a logger that is due when the saves have ended."""

    logger: Any
    checkpoint_callback: Any
    saves: Tuple[Save, ...]


class _Deferred:
    """Stands for a logger's after_save_checkpoint while a fit goes on."""

    def __init__(self, follower: Follower, logger: Any) -> None:
        self._follower = follower
        self._logger = logger

    def __call__(self, checkpoint_callback: Any) -> None:
        self._follower.announce(self._logger, checkpoint_callback)


class Follower:
    """The saves of one run of a Trainer. All calls come from the Trainer's thread.

    trainer:         whose saves they are.
    ended:           whether `end` was called.
    durable, failed: called once for each save that ended so, in the order in which they were
                     accepted: one that has ended waits for those before it. One that gave way to
                     a newer one ends without.
    loggers:         whose after_save_checkpoint waits, until `end`, for the saves before it.
    """

    def __init__(
        self,
        trainer: Any,
        durable: Callable[[Save], None],
        failed: Callable[[Save, SaveError], None],
        loggers: List[Any],
    ) -> None:
        self.trainer = trainer
        self.ended = False
        self._durable = durable
        self._failed = failed
        self._saves: List[Save] = []
        self._announcements: List[_Announcement] = []
        self._next_look = 0.0
        self._loggers = loggers
        for logger in loggers:
            logger.after_save_checkpoint = _Deferred(self, logger)

    def accepted(self, save: Save) -> None:
        """Takes a save to follow."""
        self._saves.append(save)

    def announce(self, logger: Any, checkpoint_callback: Any) -> None:
        """Has `logger` told of `checkpoint_callback` when what is followed now has ended."""
        self._announcements.append(_Announcement(logger, checkpoint_callback, tuple(self._saves)))

    def look(self, at_once: bool = True) -> None:
        """Calls back for what has ended; asks the daemon at most ten times a second unless at_once."""
        if not (self._saves or self._announcements):
            return
        now = time.monotonic()
        if not at_once and now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        while self._saves and self._saves[0].done():
            save = self._saves.pop(0)
            if save.failed:
                self._failed(save, save.error())
            elif save.durable:
                self._durable(save)
        self._tell_loggers()

    def end(self) -> None:
        """Looks for the last time; what fails while an exception is under way is logged."""
        in_flight = exception_in_flight()
        self.ended = True
        try:
            self.look()
        except Exception:
            if in_flight is None:
                raise
            _log.exception("a hook for ended saves failed")
        finally:
            for logger in self._loggers:
                vars(logger).pop("after_save_checkpoint", None)
            self._loggers = []

    def _tell_loggers(self) -> None:
        due = [one for one in self._announcements if not any(s in self._saves for s in one.saves)]
        self._announcements = [one for one in self._announcements if one not in due]
        told: List[Tuple[Any, Any]] = []
        for one in due:
            whom = (one.logger, one.checkpoint_callback)
            lost = bool(one.saves) and all(save.failed for save in one.saves)
            if lost or any(whom[0] is t[0] and whom[1] is t[1] for t in told):
                continue
            told.append(whom)
            type(one.logger).after_save_checkpoint(one.logger, one.checkpoint_callback)
