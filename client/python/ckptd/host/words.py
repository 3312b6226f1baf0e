"""How a host says that a task has failed."""

from __future__ import annotations

import traceback
from typing import Any

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

# Of a traceback; more of it helps nobody, and it is kept with the save.
_MAX_TRACE_CHARACTERS = 16 << 10


def failure(
    path: str, why: str, reason: str, code: Any = code_pb2.UNKNOWN, **metadata: str
) -> status_pb2.Status:
    """The status of a task about `path`, which its message starts with."""
    message = f"{path}: {why}" if path else why
    status = status_pb2.Status(code=code, message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="ckptd", metadata=metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        status.details.append(detail)
    return status


def exception(path: str, label: str, error: BaseException, what: str) -> status_pb2.Status:
    """The status of a task in which `label` has raised `error`, with the traceback."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    if len(trace) > _MAX_TRACE_CHARACTERS:
        trace = "…" + trace[-_MAX_TRACE_CHARACTERS:]
    text = f"{summary} ({label}, {what})\n{trace.rstrip()}"
    return failure(path, text, "BACKEND_FAILED", exception=type(error).__name__, host=label)
