"""What this package raises, and how an error of the daemon becomes one of these.

Every message starts with what it is about (a path, an address), says why, and what to do.
`reason` is the ErrorInfo.reason of the daemon where the error comes from there.
"""

from __future__ import annotations

import pickle
from typing import Optional, Type

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
# What a daemon answers about something that the one before had begun: gRPC reconnects by itself.
_RESTARTED = ("SESSION_NOT_FOUND", "SAVE_NOT_FOUND", "LOAD_NOT_FOUND")


class CheckpointError(RuntimeError):
    """Base of all errors of this package.

    reason: upper-case word for programs, for example "STORAGE_FULL".
    path:   of the checkpoint concerned, or None.
    save:   name of the save concerned, "jobs/{job}/saves/{save}", or None.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        path: Optional[str] = None,
        save: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.path = path
        self.save = save


class SaveError(CheckpointError):
    """A checkpoint could not be saved; whatever was at its path before still is."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint file is damaged: not what was written. `reason` is "CORRUPT_CHECKPOINT".

    path:   of the file.
    record: name of the damaged record as the zip has it, or None where it is the file's structure.
    offset: byte in the file where that record, or the broken structure, begins.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Optional[str] = None,
        record: Optional[str] = None,
        offset: int = 0,
    ) -> None:
        super().__init__(message, reason="CORRUPT_CHECKPOINT", path=path)
        self.record = record
        self.offset = offset


class CheckpointTimeoutError(CheckpointError, TimeoutError):
    """A wait reached its deadline. What was accepted before goes on in the daemon."""


class SaveTimeoutError(SaveError, CheckpointTimeoutError):
    """A save, or the wait for one, reached its deadline."""


class UnpicklableError(SaveError, pickle.PicklingError):
    """The object holds something that Python cannot pickle; the message says where."""


class DaemonUnavailableError(SaveError, ConnectionError):
    """There is no daemon at the address, or it went away during the call."""


class SessionLostError(DaemonUnavailableError):
    """The connection broke in the middle of a call; whether the call took effect is unknown."""


def let_go(error: Optional[BaseException]) -> None:
    """Drops the frames of an error that was dealt with, and of those that led to it.

    What gRPC raises for a stream is the stream, which has the frame that raised it, which has the
    stream: with that ring all that the callers hold, such as a state, would stay until Python
    next collects old garbage.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call; made from code and text where none was sent."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def reason_of(status: status_pb2.Status) -> str:
    """ErrorInfo.reason of a status, or the name of its code where there is none."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            return str(info.reason)
    return str(code_pb2.Code.Name(status.code))


def from_rpc(
    error: grpc.RpcError,
    *,
    about: str,
    waited_for: str,
    timeout: float,
    path: Optional[str] = None,
    save: Optional[str] = None,
    kind: Type[CheckpointError] = CheckpointError,
) -> CheckpointError:
    """Makes the exception for a failed call.

    about:      what the message starts with: the path, or the address.
    waited_for: completes "… within {timeout} s: " when the deadline ran out.
    kind:       class of the result, unless it is a time-out or the daemon is gone.
    """
    status = status_of(error)
    reason = reason_of(status)
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        timed_out = SaveTimeoutError if issubclass(kind, SaveError) else CheckpointTimeoutError
        # The daemon's own words where it had the time to say them.
        cause = status.message if status.details else waited_for
        message = f"{about}: not done within {timeout:g} s: {cause}"
        return timed_out(message, reason=reason, path=path, save=save)
    message = status.message if about in status.message else f"{about}: {status.message}"
    # A call is cancelled without a reason where another thread found the connection broken.
    broken = error.code() == grpc.StatusCode.UNAVAILABLE or reason == "CANCELLED"
    if broken or reason in _RESTARTED:
        return SessionLostError(message, reason=reason, path=path, save=save)
    return kind(message, reason=reason, path=path, save=save)
