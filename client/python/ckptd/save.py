"""The handle of a save."""

from __future__ import annotations

import logging
import time
from typing import Any, Optional

import grpc
from google.rpc import code_pb2, error_details_pb2

from .errors import (
    DaemonUnavailableError,
    SaveError,
    SaveTimeoutError,
    SessionLostError,
    from_rpc,
    let_go,
    reason_of,
)
from .session import LONG_RETURN_TIMEOUT, Session, session_for
from .v1 import checkpoint_pb2 as pb

_ENDED = (pb.Save.SUCCEEDED, pb.Save.FAILED, pb.Save.CANCELLED, pb.Save.SUPERSEDED)
# Between two watches, where a daemon that is shutting down ends them.
_PAUSE_SECONDS = 0.05

_log = logging.getLogger("ckptd")


class Save:
    """An accepted save: its snapshot is complete, and the daemon makes it durable.

    name: "jobs/{job}/saves/{save}", for ckptctl and GetSave; "" if it was saved without a daemon.
    path: where the checkpoint goes, absolute.
    """

    def __init__(
        self, address: str, timeout: float, owner: Any, proto: pb.Save, session_id: str
    ) -> None:
        self.name = proto.name
        self.path = proto.path
        self.owner = owner
        self.session_id = session_id
        self._address = address
        self._timeout = timeout
        self._proto = proto

    def __repr__(self) -> str:
        return f"<ckptd.Save {self.name or '(local)'} {self._state_name()} {self.path}>"

    @property
    def state(self) -> str:
        """STAGING, QUEUED, PERSISTING, SUCCEEDED, FAILED, CANCELLED or SUPERSEDED, as it is now.

        The last known one where the daemon does not answer.
        """
        self._ask()
        return self._state_name()

    @property
    def total_bytes(self) -> int:
        """Size of the finished checkpoint in bytes; 0 if it was saved without a daemon."""
        return self._proto.total_bytes

    @property
    def persisted_bytes(self) -> int:
        """How many of them are on storage, as was last heard."""
        return self._proto.persisted_bytes

    def done(self) -> bool:
        """Whether it has ended, durable or not."""
        self._ask()
        return self.ended

    def exception(self, timeout: Optional[float] = None) -> Optional[SaveError]:
        """Waits as `result` does; returns the SaveError of a save that failed, None if durable.

        Raises SaveTimeoutError, and DaemonUnavailableError where nobody can be asked.
        """
        try:
            self.result(timeout)
        except (SaveTimeoutError, DaemonUnavailableError):
            raise
        except SaveError as error:
            return error
        return None

    def result(self, timeout: Optional[float] = None) -> None:
        """Returns when the checkpoint is durable.

        timeout: seconds; the client's if None.
        Raises SaveError with the daemon's reason if it failed or was cancelled, SaveTimeoutError
        (a TimeoutError) if it has not ended in time: it goes on all the same.
        """
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while not self.ended:
            session = session_for(self._address)
            session.connect_within(min(deadline, time.monotonic() + LONG_RETURN_TIMEOUT))
            self._watch(session, limit, deadline)
            if not self.ended:
                time.sleep(_PAUSE_SECONDS)
        if self._proto.state != pb.Save.SUCCEEDED:
            session_for(self._address).ledger.discard(self)
            raise self.error()

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended; asks nobody."""
        return self._proto.state in _ENDED

    @property
    def durable(self) -> bool:
        """Whether it is known to be durable; asks nobody."""
        return self._proto.state == pb.Save.SUCCEEDED

    @property
    def failed(self) -> bool:
        """Whether it is known to have ended, neither durable nor given up for a newer one."""
        return self._proto.state in (pb.Save.FAILED, pb.Save.CANCELLED)

    def error(self) -> SaveError:
        """The exception for a save that did not become durable."""
        status = self._proto.error
        text = status.message or "the daemon gives no reason"
        message = text if self.path in text else f"{self.path}: {text}"
        return SaveError(
            f"{message} (save {self.name} {self._state_name()}; what was at the path before is "
            "untouched)",
            reason=reason_of(status),
            path=self.path,
            save=self.name,
        )

    def take(self, news: pb.Save) -> None:
        """Takes in what the daemon says; what was heard of its end stands."""
        if not self.ended:
            self._proto = news

    def lost(self) -> pb.Save:
        """What to take in if the daemon does not know the save."""
        news = pb.Save()
        news.CopyFrom(self._proto)
        news.state = pb.Save.FAILED
        news.error.code = code_pb2.NOT_FOUND
        news.error.message = (
            f"{self.path}: the daemon ended before it told that the save is durable. If it accepted "
            f"it, it goes on when it is started again: see `ckptctl get {self.name}`"
        )
        return news

    def spoilt(self, error: BaseException) -> pb.Save:
        """What to take in if its copy, or the commit, did not work."""
        news = pb.Save()
        news.CopyFrom(self._proto)
        news.state = pb.Save.FAILED
        news.error.code = code_pb2.ABORTED
        news.error.message = str(error) or type(error).__name__
        reason = getattr(error, "reason", "")
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="ckptd")
            news.error.details.add().Pack(info)
        return news

    def _ask(self) -> None:
        if self.ended:
            return
        session = session_for(self._address)
        try:
            session.connect()
            session.ledger.ask(self, session.get_save)
        except (grpc.RpcError, DaemonUnavailableError):
            _log.debug("%s: cannot ask after %s", self._address, self.name, exc_info=True)

    def _watch(self, session: Session, limit: float, deadline: float) -> None:
        """Follows the save until it ends, the stream breaks, or the deadline is there."""
        with session.operation() as session_id:
            try:
                left = max(0.001, deadline - time.monotonic())
                for news in session.call("WatchSaves", pb.WatchSavesRequest(name=self.name), left):
                    session.ledger.settle(self, news)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    session.ledger.settle(self, self.lost())
                    let_go(error)
                    return
                failure = from_rpc(
                    error,
                    about=self.path,
                    waited_for=f"the save is {self._state_name()}, and goes on",
                    timeout=limit,
                    path=self.path,
                    save=self.name,
                    kind=SaveError,
                )
                if not isinstance(failure, SessionLostError):
                    raise failure from error
                session.lose(session_id)
                let_go(error)

    def _state_name(self) -> str:
        return pb.Save.State.Name(self._proto.state)
