"""Saves, loads and removals by a Python CheckpointIO: in the daemon's order, and in a host process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

import grpc

from . import names
from .capture import capture
from .errors import from_rpc
from .flushing import remove as ask_to_remove
from .host_spec import Host, by_value, main_globals
from .names import PathLike
from .overlap import Guard, wait_for_copies
from .save import Save
from .session import ANSWER_TIMEOUT, Session, session_for
from .transfer import Attempt, call
from .v1 import checkpoint_pb2 as pb

if TYPE_CHECKING:
    from .client import Client

#: What these saves are to the daemon, whichever CheckpointIO it is.
BACKEND = "python"


def save(
    client: "Client",
    host: Host,
    obj: Any,
    path: PathLike,
    on_full: Any,
    *,
    overlap: Any = None,
    **options: Any,
) -> Save:
    """Has the host call save_checkpoint(obj, path, **options); returns when the snapshot is taken.

    Raises what Client.save raises, and TypeError for a CheckpointIO, or options, that cannot be
    pickled: nothing has happened then.
    """
    target = names.place(path)
    host.prepare()
    where = path if names.is_url(target) else type(path)(target)  # type: ignore[call-arg]
    guard = None if overlap is None or overlap is False else Guard(overlap)
    wait_for_copies()
    captured = capture(obj, target, session_for(client.address).structures)
    try:
        arguments = by_value((main_globals(captured.pickle), ((where,), options)))
    except Exception as error:
        raise TypeError(
            f"{target}: the options for {host.label} cannot be pickled, and so cannot reach its host "
            f"process: {error}. Give plain values."
        ) from error
    attempt = Attempt(
        client.caller(),
        captured,
        target,
        BACKEND,
        on_full,
        guard,
        host=lambda session, session_id: register(host, session, session_id, target),
        arguments=arguments,
    )
    return client.run(attempt.run, lambda: save_here(client, host.base, obj, path, **options))


def save_here(client: "Client", base: Any, obj: Any, path: PathLike, **options: Any) -> Save:
    """Saves in this process, at once."""
    base.save_checkpoint(obj, path, **options)
    return client.saved(names.place(path), BACKEND)


def load(
    client: "Client", path: PathLike, read: Callable[[], Any], backend: str = BACKEND
) -> Any:
    """What `read` gives, called when all that was accepted before on `path` has ended.

    Nothing that is accepted meanwhile begins before `read` returns.
    """
    target = names.place(path)

    def read_in_turn(session: Session, session_id: str) -> Any:
        begun = call(
            session,
            "BeginLoad",
            pb.BeginLoadRequest(session_id=session_id, path=target, backend=backend),
            timeout=client.timeout,
            waited_for="saves or removals that were accepted before on this path have not ended",
            path=target,
        )
        try:
            return read()
        finally:
            end = pb.EndLoadRequest(load_id=begun.load_id)
            call(session, "EndLoad", end, timeout=ANSWER_TIMEOUT, waited_for="EndLoad", path=target)

    return client.run(read_in_turn, read)


def remove(client: "Client", host: Host, path: PathLike, wait: bool) -> None:
    """Has the host call remove_checkpoint, as Client.remove has the daemon remove."""
    target = names.place(path)
    host.prepare()

    def ask(session: Session, session_id: str) -> None:
        request = pb.RemoveCheckpointRequest(
            parent=f"jobs/{client.job}",
            path=target,
            wait=wait,
            backend=BACKEND,
            host=register(host, session, session_id, target),
        )
        ask_to_remove(session, request, client.timeout)

    client.run(ask, lambda: host.base.remove_checkpoint(os.fspath(path)))


def register(host: Host, session: Session, session_id: str, path: str) -> str:
    """The host's id in the session. Raises CheckpointError."""
    try:
        return host.id_in(session, session_id)
    except grpc.RpcError as error:
        raise from_rpc(
            error,
            about=path,
            waited_for=f"the daemon is slow to take note of the host process of {host.label}",
            timeout=ANSWER_TIMEOUT,
            path=path,
        ) from error
