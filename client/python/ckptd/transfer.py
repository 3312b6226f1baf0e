"""One save and one load through an open session.

A save: BeginSave (plan, image) -> copy -> CommitSave. A load: BeginLoad holds the path -> open the
file -> EndLoad lets go of it, before a byte is read: the open file stays what it is.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Optional, Type, TypeVar

import grpc

from . import device, names, overlap, stream
from .capture import Captured
from .content import Content, InMemory, OpenFile
from .errors import CheckpointError, SaveError, SessionLostError, from_rpc
from .lending import LentMemory
from .named import Named
from .overlap import Guard
from .save import Save
from .session import ANSWER_TIMEOUT, Session
from .shm import NotSharedError
from .v1 import checkpoint_pb2 as pb

_T = TypeVar("_T")
_log = logging.getLogger("ckptd")


@dataclass
class Caller:
    """What the calls of one client have in common."""

    address: str
    job: str
    timeout: float  # seconds for one operation
    transport: str  # "auto", "shm" or "grpc"
    owner: Any  # whose saves are reported together
    lend: bool = True  # whether a load may take memory of the daemon
    backend: str = ""  # that reads a load; empty: the file


def call(
    session: Session,
    method: str,
    request: Any,
    *,
    timeout: float,
    waited_for: str,
    path: Optional[str] = None,
    save: Optional[str] = None,
    kind: Type[CheckpointError] = CheckpointError,
) -> Any:
    """Makes a call; raises the exceptions of errors.from_rpc."""
    try:
        return session.call(method, request, timeout)
    except grpc.RpcError as error:
        raise from_rpc(
            error,
            about=path or session.address,
            waited_for=waited_for,
            timeout=timeout,
            path=path,
            save=save,
            kind=kind,
        ) from error


class Attempt:
    """Hands a captured object to the daemon, again if it went away in between.

    Once CommitSave was sent, the next attempt is made under the same name, so that a commit whose
    answer got lost counts once.

    guard: what keeps the larger part from being changed while it is copied behind; `run` returns
    before it is, and the save is STAGING until then.
    host: gives the id of the host process that is to write it, in the session of an attempt.
    """

    def __init__(
        self,
        caller: Caller,
        captured: Captured,
        path: str,
        backend: str,
        on_full: Any,
        guard: Optional[Guard] = None,
        visible: Any = pb.BeginSaveRequest.VISIBILITY_UNSPECIFIED,
        host: Optional[Callable[[Session, str], str]] = None,
        arguments: bytes = b"",
    ) -> None:
        self._host = host
        self._guard = guard
        self._caller = caller
        self._captured = captured
        self._committing = False
        self._request = pb.BeginSaveRequest(
            path=path,
            backend=backend,
            object_bytes=len(captured.pickle),
            umask=names.umask(),
            on_full=on_full,
            visible=visible,
            arguments=arguments,
            copied_aside=guard is not None or device.is_used(captured.storages),
        )
        if isinstance(captured, Named):
            self._request.tensors.extend(captured.specs)
            self._request.options.update(captured.options)
        else:
            self._request.tensor_sizes.extend(captured.sizes)

    def run(self, session: Session, session_id: str) -> Save:
        """Raises SaveError: nothing is accepted then, but for a SessionLostError: try again."""
        deadline = time.monotonic() + self._caller.timeout
        begun = self._begin(session, session_id)
        caller = self._caller
        save = Save(caller.address, caller.timeout, caller.owner, begun.save, session_id)
        session.ledger.add(save)
        if begun.save.state != pb.Save.STAGING:  # the answer to its commit got lost
            session.ledger.settle(save, begun.save)
            return save
        try:
            if self._guard is not None and self._copy_behind(self._guard, session, begun, save):
                return save
            _fill(caller, session, self._captured, begun, deadline)
            self._commit(session, save)
        except BaseException:
            session.ledger.discard(save)
            _abort(session, save)
            raise
        return save

    def _commit(self, session: Session, save: Save) -> None:
        self._committing = True
        committed = self._call(session, "CommitSave", pb.CommitSaveRequest(name=save.name))
        session.ledger.settle(save, committed.save)
        for ended in committed.ended_saves:
            session.ledger.update(ended)

    def _copy_behind(
        self, guard: Guard, session: Session, begun: pb.BeginSaveResponse, save: Save
    ) -> bool:
        """Copies what nothing guards, and has the rest copied and committed behind the caller.

        False, and nothing is done, where that cannot be.
        """
        if self._caller.transport == "grpc":
            return False
        with ExitStack() as until_copied:
            try:
                mapping = until_copied.enter_context(session.mappings.hold(begun.image))
            except NotSharedError:
                return False
            until_copied.enter_context(session.operation())
            at_once, behind = guard.split(self._captured)
            session.copier.copy(self._captured, begun, mapping, at_once)
            ready = device.mark(self._captured.storages)
            held = until_copied.pop_all()

        def copy() -> None:
            with held:
                try:
                    session.copier.copy(self._captured, begun, mapping, behind, ready)
                    guard.check(save.path, save.name)
                    self._commit(session, save)
                except SessionLostError:
                    session.lose(save.session_id)  # the ledger asks what became of it
                except BaseException as error:  # noqa: BLE001 - whoever asks after the save is told
                    session.ledger.settle(save, save.spoilt(error))
                    _abort(session, save)

        overlap.start(copy)
        return True

    def _begin(self, session: Session, session_id: str) -> pb.BeginSaveResponse:
        self._request.session_id = session_id
        if self._host is not None:
            self._request.host = self._host(session, session_id)
        if not self._committing:
            self._new_name()
        begun: pb.BeginSaveResponse = self._call(session, "BeginSave", self._request)
        if begun.save.state == pb.Save.CANCELLED:  # with the session before, and not accepted
            self._new_name()
            begun = self._call(session, "BeginSave", self._request)
        self._committing = False
        return begun

    def _new_name(self) -> None:
        self._request.name = f"jobs/{self._caller.job}/saves/{names.save_id()}"

    def _call(self, session: Session, method: str, request: Any) -> Any:
        begins = method == "BeginSave"
        return call(
            session,
            method,
            request,
            timeout=self._caller.timeout if begins else ANSWER_TIMEOUT,
            waited_for="no staging memory came free; see `ckptctl status`"
            if begins
            else "the daemon is slow to accept the save",
            path=self._request.path,
            save=self._request.name,
            kind=SaveError,
        )


def _fill(
    caller: Caller,
    session: Session,
    captured: Captured,
    begun: pb.BeginSaveResponse,
    deadline: float,
) -> None:
    if caller.transport != "grpc":
        try:
            with session.mappings.hold(begun.image) as mapping:
                session.copier.copy(captured, begun, mapping)
            return
        except NotSharedError as error:
            if caller.transport == "shm":
                _check_known(session, begun)  # else the image went with its daemon
                raise SaveError(
                    f"{begun.save.path}: no shared memory with the daemon at {session.address}: "
                    f'{error}. Give both the same pool directory, or use transport="auto".',
                    reason="NOT_SHARED",
                    path=begun.save.path,
                    save=begun.save.name,
                ) from error
            _log.debug("%s: %s; streaming", session.address, error)
    left = max(0.001, deadline - time.monotonic())
    try:
        stream.write(session, captured, begun, left)
    except grpc.RpcError as error:
        raise from_rpc(
            error,
            about=begun.save.path,
            waited_for="its bytes were being streamed to the daemon",
            timeout=caller.timeout,
            path=begun.save.path,
            save=begun.save.name,
            kind=SaveError,
        ) from error


def _check_known(session: Session, begun: pb.BeginSaveResponse) -> None:
    """Raises SessionLostError where the daemon was restarted since the save began."""
    request = pb.GetSaveRequest(name=begun.save.name)
    call(
        session,
        "GetSave",
        request,
        timeout=ANSWER_TIMEOUT,
        waited_for="the daemon is slow to say what became of the save",
        path=begun.save.path,
        save=begun.save.name,
        kind=SaveError,
    )


def _abort(session: Session, save: Save) -> None:
    try:
        session.call("AbortSave", pb.AbortSaveRequest(name=save.name), ANSWER_TIMEOUT)
    except (grpc.RpcError, CheckpointError):
        # The daemon gives up what is staging when the session ends.
        _log.debug("%s: cannot abort %s", session.address, save.name, exc_info=True)


def load_once(
    caller: Caller, session: Session, session_id: str, path: str, read: Callable[[Content], _T]
) -> _T:
    """Gives the checkpoint at `path`, when its turn has come, to `read`."""
    waiting = "saves or removals that were accepted before on this path have not ended"
    shared = caller.transport != "grpc"
    begun = call(
        session,
        "BeginLoad",
        pb.BeginLoadRequest(
            session_id=session_id,
            path=path,
            lend=shared and caller.lend,
            backend=caller.backend,
        ),
        timeout=caller.timeout,
        waited_for=waiting,
        path=path,
    )
    end = pb.EndLoadRequest(load_id=begun.load_id)
    fd = -1
    content: Content
    try:
        try:
            if shared:
                fd = _open_same(path, begun)
            lent = _borrow(session, begun, fd)
            if lent is not None:
                content = lent
            elif fd >= 0:
                content = OpenFile(fd)
            else:
                content = InMemory(stream.read(session, begun.load_id, caller.timeout))
        except grpc.RpcError as error:
            raise from_rpc(
                error,
                about=path,
                waited_for="its bytes were being streamed from the daemon",
                timeout=caller.timeout,
                path=path,
            ) from error
        finally:
            call(session, "EndLoad", end, timeout=ANSWER_TIMEOUT, waited_for="EndLoad", path=path)
        return read(content)
    finally:
        if fd >= 0:
            os.close(fd)


def _borrow(session: Session, begun: pb.BeginLoadResponse, fd: int) -> Optional[LentMemory]:
    """The memory that the daemon lends, where it does and this process can use it."""
    if not begun.HasField("image") or (fd < 0 and not begun.image_filled):
        return None
    try:
        return LentMemory(begun.image, session.mappings, None if begun.image_filled else fd)
    except NotSharedError as error:
        _log.debug("%s: %s; loading without", session.address, error)
        return None


def _open_same(path: str, begun: pb.BeginLoadResponse) -> int:
    """Opens `path` if it leads to the daemon's file; -1 if it does not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) == (begun.device, begun.inode):
        return fd
    os.close(fd)
    return -1
