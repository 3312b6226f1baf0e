"""Keeps track of accepted saves until somebody has heard how they ended."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set

import grpc

from .v1 import checkpoint_pb2 as pb

if TYPE_CHECKING:
    from .save import Save


class Ledger:
    """The saves through one session that are pending, or failed unreported, and the jobs that may
    have removals of that kind. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Dict[str, Save] = {}
        self._failed: Dict[str, Save] = {}
        self._removing: Set[str] = set()

    def removal_accepted(self, job: str) -> None:
        """Notes that a removal of `job`, as "jobs/NAME", goes on which nobody waits for."""
        with self._lock:
            self._removing.add(job)

    def take_removing(self, job: str = "") -> List[str]:
        """The jobs, or `job`, of which that was noted; they are forgotten."""
        with self._lock:
            taken = [one for one in self._removing if job in ("", one)]
            self._removing.difference_update(taken)
            return taken

    def add(self, save: Save) -> None:
        """Enters a save that is about to be accepted."""
        with self._lock:
            self._pending[save.name] = save

    def discard(self, save: Save) -> None:
        """Strikes out a save that was not accepted: its caller hears of it at once."""
        with self._lock:
            self._pending.pop(save.name, None)
            self._failed.pop(save.name, None)

    def update(self, news: pb.Save) -> None:
        """Takes in what the daemon says of a save. Those of others are ignored."""
        with self._lock:
            save = self._pending.get(news.name)
        if save is not None:
            self.settle(save, news)

    def settle(self, save: Save, news: pb.Save) -> None:
        """Takes in what the daemon says of `save`, which may be one of a parent process."""
        with self._lock:
            save.take(news)
            known = save.ended and self._pending.pop(save.name, None) is not None
            if known and save.failed:
                self._failed[save.name] = save

    def ask(self, save: Save, get_save: Callable[[str], pb.Save]) -> None:
        """Brings `save` up to date; one that the daemon does not know died with an earlier daemon.

        Raises grpc.RpcError.
        """
        try:
            news = get_save(save.name)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            news = save.lost()
        self.settle(save, news)

    def ask_orphans(self, session_id: str, get_save: Callable[[str], pb.Save]) -> None:
        """Asks after pending saves of earlier sessions, of which this one hears nothing.

        Raises grpc.RpcError.
        """
        for save in self.pending():
            if save.session_id != session_id:
                self.ask(save, get_save)

    def pending(self, owner: Optional[Any] = None) -> List[Save]:
        """The saves of `owner`, or of all, that have not ended as far as is known."""
        with self._lock:
            return [s for s in self._pending.values() if owner is None or s.owner is owner]

    def take_failed(self, owner: Optional[Any] = None) -> List[Save]:
        """The failed saves of `owner`, or of all, that were not reported; they now are."""
        with self._lock:
            failed = [s for s in self._failed.values() if owner is None or s.owner is owner]
            for save in failed:
                del self._failed[save.name]
            return failed
