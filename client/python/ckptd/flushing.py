"""Waits for what is pending in the daemon; asks it to remove, which may be pending then."""

from __future__ import annotations

import time
from typing import Any, List

import grpc

from .errors import CheckpointError, SessionLostError, from_rpc, reason_of
from .overlap import wait_for_copies
from .session import ANSWER_TIMEOUT, LONG_RETURN_TIMEOUT, Session
from .transfer import call
from .v1 import checkpoint_pb2 as pb

_ATTEMPTS = 3


def flush(
    session: Session, owner: Any, limit: float, parent: str, path: str = ""
) -> List[CheckpointError]:
    """Waits for `parent`, at or below `path` if given; brings the ledger up to date.

    owner: whose saves the ledger is asked for. limit: seconds. Returns the failed removals; raises
    CheckpointError.
    """
    wait_for_copies()
    deadline = time.monotonic() + limit
    request = pb.FlushRequest(parent=parent, path=path)
    for left in reversed(range(_ATTEMPTS)):
        if session.ledger.pending(owner):
            session.connect_within(min(deadline, time.monotonic() + LONG_RETURN_TIMEOUT))
        else:
            session.connect()
        with session.operation() as session_id:
            try:
                response = call(
                    session,
                    "Flush",
                    request,
                    timeout=max(0.001, deadline - time.monotonic()),
                    waited_for=f"saves or removals of {parent} go on",
                    path=path or None,
                )
                if not path:
                    session.ledger.take_removing(parent)
                for save in session.ledger.pending(owner):
                    session.ledger.ask(save, session.get_save)
                return [_removal_error(removal) for removal in response.failed_removals]
            except SessionLostError:
                session.lose(session_id)
                if not left:
                    raise
            except grpc.RpcError as error:  # of the asking
                failure = from_rpc(
                    error,
                    about=session.address,
                    waited_for="the daemon is slow to say what became of a save",
                    timeout=ANSWER_TIMEOUT,
                )
                if not isinstance(failure, SessionLostError) or not left:
                    raise failure from error
                session.lose(session_id)
    raise AssertionError("unreachable")


def remove(session: Session, request: pb.RemoveCheckpointRequest, limit: float) -> None:
    """Has the daemon remove; limit: seconds. Raises CheckpointError."""
    call(
        session,
        "RemoveCheckpoint",
        request,
        timeout=limit,
        waited_for="saves that were accepted before have not ended; it goes on",
        path=request.path,
    )
    if not request.wait:
        session.ledger.removal_accepted(request.parent)


def _removal_error(removal: pb.FailedRemoval) -> CheckpointError:
    text = removal.error.message
    return CheckpointError(
        text if removal.path in text else f"{removal.path}: {text}",
        reason=reason_of(removal.error),
        path=removal.path,
    )
