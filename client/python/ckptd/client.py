"""The client: save, load, remove and flush through a daemon."""

from __future__ import annotations

import logging
import os
import time
import warnings
from dataclasses import replace
from typing import Any, Callable, Iterable, List, Optional, Tuple, TypeVar, Union

import grpc
import torch

from . import backend as registered
from . import choose, hosted, launch, local, names, xser
from .arguments import VISIBLE, check_choice, check_visible
from .capture import Captured, capture
from .content import Content, FileAt
from .errors import CheckpointError, DaemonUnavailableError, SessionLostError, let_go
from .flushing import flush
from .flushing import remove as ask_to_remove
from .host_spec import Host
from .named import capture_named, takes_names
from .names import PathLike
from .overlap import Guard, wait_for_copies
from .reserve import reserve
from .save import Save
from .session import (
    RETRY_SECONDS,
    RETURN_TIMEOUT,
    Session,
    session_for,
)
from .transfer import Attempt, Caller, load_once
from .v1 import checkpoint_pb2 as pb

#: Seconds that a call may take where neither the call nor the client says otherwise.
DEFAULT_TIMEOUT = 600.0
_ON_FULL = {
    "block": pb.BeginSaveRequest.BLOCK,
    "reject": pb.BeginSaveRequest.REJECT,
    "supersede": pb.BeginSaveRequest.SUPERSEDE,
}

_T = TypeVar("_T")
_log = logging.getLogger("ckptd")


class Client:
    """Saves checkpoints through a ckptd daemon. Thread-safe, picklable, usable after fork.

    address:        "unix:PATH" or "HOST:PORT"; default $CKPTD_ADDRESS, else this user's socket.
    job:            names the saves; default $CKPTD_JOB, else the launcher's id, else one for each
                    process. A removal waits for the earlier saves of its job.
    on_full:        what a save does at the staging budget: "block" until there is memory, or the
                    timeout; "reject": raise SaveError at once; "supersede": let an older save to
                    the same path give way that is accepted and not begun, then block.
    on_unavailable: where no daemon answers: "start" one for this user (it ends itself when idle
                    for 10 min), "fallback" to plain torch.save with one warning, or "raise".
    timeout:        seconds that each call may take; DEFAULT_TIMEOUT if None.
    transport:      "shm" (shared memory), "grpc" (a stream), or "auto": the first that works.

    Connects when it is first used. Raises ValueError for a wrong argument.
    """

    def __init__(
        self,
        address: Optional[str] = None,
        job: Optional[str] = None,
        on_full: str = "block",
        on_unavailable: str = "start",
        timeout: Optional[float] = None,
        transport: str = "auto",
    ) -> None:
        check_choice("on_full", on_full, _ON_FULL)
        check_choice("on_unavailable", on_unavailable, ("start", "fallback", "raise"))
        check_choice("transport", transport, ("auto", "shm", "grpc"))
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: {timeout!r} is not a number of seconds above 0.")
        self._arguments = (address, job, on_full, on_unavailable, timeout, transport)
        self.address = address or names.default_address()
        self.timeout = DEFAULT_TIMEOUT if timeout is None else float(timeout)
        self._job = job or ""
        self._on_full = on_full
        self._on_unavailable = on_unavailable
        self._transport = transport
        self._owner = object()
        self._warned = False

    def __repr__(self) -> str:
        return f"<ckptd.Client {self.address} jobs/{self.job}>"

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), self._arguments

    @property
    def job(self) -> str:
        """The job that saves are named after, without "jobs/"."""
        return names.job_id(self._job)

    def save(
        self,
        obj: Any,
        path: PathLike,
        backend: str = "torch",
        *,
        overlap: Any = None,
        visible: str = "when_durable",
    ) -> Save:
        """Saves what torch.save would, and returns when the snapshot is the daemon's.

        From then on `obj` may be changed or freed. The parent directories of `path` exist then;
        the checkpoint appears at `path`, whole, when it is durable: see Save.result.

        overlap: optimizers, and modules; one or several. Their parameters and state are copied
        behind forward and backward; all else, buffers too, before this returns. A hook on each
        optimizer's step, and on load_state_dict of the modules, waits for the copy, as do the next
        save, load, removal and flush, and the end of the process. Nothing else may change them
        until then: by their version counters it is found out, and the save fails. What leaves no
        trace there (`param.data`, a replayed CUDA graph) must not be used with it.

        visible: "when_durable", or "at_return": where `path` does not exist, it is a symlink to the
        staged checkpoint when this returns, until the durable file replaces it; where the save
        fails later, it goes. A path that exists keeps what it has until the new one is durable. So
        does one whose save went by a stream, to a daemon whose memory this process does not share.
        Not with overlap: the checkpoint is not complete when this returns.

        backend: "torch"; "xla-xser", which writes a file for each tensor into the folder
        PATH.tensors; "safetensors", or a plugin of the daemon's, which write nested dicts and
        lists of tensors, and what else they take; or one of ckptd.backend.register, whose save_checkpoint(obj, path) writes it
        in a process of its own; `path` may be a URL then.

        Raises SaveError if the save is not accepted (docs/errors.md lists its `reason`s),
        UnpicklableError, SaveTimeoutError, DaemonUnavailableError, ValueError for a URL, and what
        torch.save raises for tensors that it refuses. The path is as it was then.
        """
        overlaps = overlap is not None and overlap is not False
        check_visible(visible, overlaps)
        host = registered.find(backend)
        if host is not None:
            if visible != "when_durable":
                raise ValueError(
                    f"visible: {visible!r} does not go with backend={backend!r}, which writes what it"
                    " likes; leave out one."
                )
            return self.save_with(host, obj, path, overlap=overlap)
        target = names.local_path(path)
        guard = Guard(overlap) if overlaps else None
        wait_for_copies()
        captured: Captured
        session = session_for(self.address)
        if backend == xser.BACKEND:
            captured = xser.capture(obj, target)
        elif takes_names(backend):
            captured = capture_named(obj, target, backend, session.last_named)
        else:
            captured = capture(obj, target, session.structures)
        on_full = _ON_FULL[self._on_full]
        attempt = Attempt(
            self.caller(), captured, target, backend, on_full, guard, VISIBLE[visible]
        )

        def save_locally() -> Save:
            local.check_backend(backend, target)
            local.save(obj, target)
            return self.saved(target, backend)

        return self.run(attempt.run, save_locally)

    def save_with(self, host: Host, obj: Any, path: PathLike, **options: Any) -> Save:
        """Saves as `save` does, by the CheckpointIO of `host`; see hosted.save."""
        return hosted.save(self, host, obj, path, _ON_FULL[self._on_full], **options)

    def save_here(self, host: Host, obj: Any, path: PathLike, **options: Any) -> Save:
        """Saves by the CheckpointIO of `host` in this process, and waits for it."""
        return hosted.save_here(self, host.base, obj, path, **options)

    def saved(self, path: str, backend: str) -> Save:
        """The handle of a save that is durable already, without the daemon; for this package."""
        done = pb.Save(path=path, state=pb.Save.SUCCEEDED, backend=backend)
        return Save(self.address, self.timeout, self._owner, done, "")

    def load(
        self,
        path: PathLike,
        map_location: Any = "cpu",
        weights_only: Optional[bool] = None,
        *,
        fallback: Union[PathLike, Iterable[PathLike]] = (),
        verify: bool = True,
        lend: bool = True,
        backend: str = "torch",
    ) -> Any:
        """Loads a checkpoint with torch.load, after everything accepted before on `path`.

        map_location, weights_only: handed to torch.load as they are; None is its default.
        fallback: paths to try, in this order, where the one before is corrupt or missing.
        verify:   whether to check the file first, which torch.load does not. A file without
                  checksums, as in torch's old format, is loaded as it is.
        lend:     whether the tensors may lie in memory that the daemon lends this process for as
                  long as it has one of them: nothing is copied. Otherwise torch.load reads the
                  file.
        backend:  a plugin of the daemon's reads it; what the others write tells itself what it is.
                  One of ckptd.backend.register reads it by its load_checkpoint(path), here: then
                  the other arguments are not asked for.
        Raises FileNotFoundError if there is no file then, CorruptCheckpointError,
        CheckpointTimeoutError, CheckpointError, and what torch.load raises.
        """
        host = registered.find(backend)
        if host is not None:
            return self.load_with(path, lambda: host.base.load_checkpoint(path))

        def read_parts(target: str) -> Any:
            def parts() -> Any:
                if not os.path.exists(target):
                    raise FileNotFoundError(f"Checkpoint file not found: {target}")
                return xser.load(target, map_location, weights_only, verify)

            return hosted.load(self, target, parts, xser.BACKEND)

        def read(content: Content, target: str) -> Any:
            if xser.refers(target):
                return read_parts(target)
            if verify:
                content.check(target)
            return content.load(map_location, weights_only)

        paths = choose.candidates(path, fallback)
        if backend == xser.BACKEND:
            return choose.first_that_loads(lambda one: read_parts(names.local_path(one)), paths)
        return choose.first_that_loads(lambda one: self._load(one, read, lend, backend), paths)

    def load_with(self, path: PathLike, read: Callable[[], Any]) -> Any:
        """What `read` gives, in the order of all on `path`; see hosted.load."""
        return hosted.load(self, path, read)

    def latest(self, folder: PathLike) -> str:
        """The path of the newest torch checkpoint in `folder` that is whole.

        Waits for what is pending in `folder` where a daemon answers, but starts none. Takes regular
        files in the folder itself, by time of modification; logs each corrupt one that it passes
        over. Saves and removals that have failed are left to whoever raises them otherwise. Raises
        FileNotFoundError if there is none, CheckpointTimeoutError.
        """
        target = names.local_path(folder)
        if os.path.isdir(target):
            real = os.path.realpath(target)
            try:
                session = session_for(self.address)
                # Of all jobs: the daemon keeps what failed for the flush of each one.
                flush(session, self._owner, self.timeout, "jobs/-", "" if real == "/" else real)
            except DaemonUnavailableError:
                _log.debug("%s: no daemon answers", self.address, exc_info=True)
        return choose.newest(target)

    def remove(self, path: PathLike, wait: bool = True, *, backend: str = "torch") -> None:
        """Removes a file or folder, after the saves that this job had accepted are durable.

        With a backend of ckptd.backend.register, its remove_checkpoint(path) does. A checkpoint of
        "xla-xser" needs that name here, or its folder stays.

        A missing path is no error. With wait=False it returns once the removal has its place in
        the order; `flush` raises if it fails then. Raises CheckpointError.
        """
        host = registered.find(backend)
        if host is not None:
            return self.remove_with(host, path, wait)
        target = names.local_path(path)
        request = pb.RemoveCheckpointRequest(
            parent=f"jobs/{self.job}",
            path=target,
            wait=wait,
            backend=backend if takes_names(backend) else "",
        )
        self.run(
            lambda session, _: ask_to_remove(session, request, self.timeout),
            lambda: local.remove(target),
        )

    def remove_with(self, host: Host, path: PathLike, wait: bool = False) -> None:
        """Removes as `remove` does, by the CheckpointIO of `host`."""
        hosted.remove(self, host, path, wait)

    def flush(self, timeout: Optional[float] = None) -> None:
        """Waits until the saves and removals of this job that were accepted so far have ended.

        timeout: seconds; the client's if None. Starts no daemon where nothing is pending. Raises
        SaveError for saves of this client that failed and were not reported before, CheckpointError for removals that
        failed, CheckpointTimeoutError.
        """
        limit = self.timeout if timeout is None else timeout
        session = session_for(self.address)
        failed_removals: List[CheckpointError] = []
        try:
            failed_removals = flush(session, self._owner, limit, f"jobs/{self.job}")
        except DaemonUnavailableError:
            for save in session.ledger.pending(self._owner):
                session.ledger.settle(save, save.lost())
        failed = [save.error() for save in session.ledger.take_failed(self._owner)]
        _raise_first(failed + failed_removals)

    def pending(self) -> List[Save]:
        """The saves of this client that have not ended, as far as is known; asks nobody."""
        return session_for(self.address).ledger.pending(self._owner)

    def reserve(self, obj_or_bytes: Any, images: int = 2, wait: bool = False) -> int:
        """Has the daemon make staging memory ready, so that the first save finds it warm.

        obj_or_bytes: what will be saved, or its size in bytes.
        images:       how many saves may be under way at once.
        wait:         whether to return only when the memory is ready.
        Returns how many such images fit the budget. Raises SaveError if not one does.
        """
        size = obj_or_bytes
        if not isinstance(size, int):
            size = capture(obj_or_bytes).image_bytes()

        def ask(session: Session, session_id: str) -> int:
            request = pb.ReserveRequest(
                session_id=session_id, image_bytes=size, image_count=images, wait=wait
            )
            return reserve(session, request, self.timeout, self._transport != "grpc")

        return self.run(ask, lambda: 0)

    def raise_failed(self) -> None:
        """Raises SaveError for saves that are known to have failed and were not reported yet.

        Does not wait. Each failure is raised once, by whichever comes first: this, `flush` or
        Save.result.
        """
        session = session_for(self.address)
        try:
            session.ledger.ask_orphans(session.id, session.get_save)
        except (grpc.RpcError, DaemonUnavailableError):
            _log.debug("%s: cannot ask after earlier saves", self.address, exc_info=True)
        _raise_first([save.error() for save in session.ledger.take_failed(self._owner)])

    def close(self) -> None:
        """Lets go of the session; accepted saves go on. The client may be used again."""
        wait_for_copies()
        session_for(self.address).release(self)

    def _load(
        self, path: PathLike, read: Callable[[Content, str], _T], lend: bool, backend: str
    ) -> _T:
        """Gives the checkpoint at `path`, when its turn has come, to `read`, with its name."""
        target = names.local_path(path)
        reader = backend if takes_names(backend) else ""
        caller = replace(self.caller(), lend=lend, backend=reader)

        def read_locally() -> _T:
            local.check_backend("" if backend == "safetensors" else reader, target)
            if not os.path.exists(target):
                raise FileNotFoundError(f"Checkpoint file not found: {os.fspath(path)}")
            return read(FileAt(target), target)

        try:
            return self.run(
                lambda session, session_id: load_once(
                    caller, session, session_id, target, lambda content: read(content, target)
                ),
                read_locally,
            )
        except CheckpointError as error:
            if error.reason != "CHECKPOINT_NOT_FOUND":
                raise
            # By the name that the caller knows, as where there is no daemon.
            raise FileNotFoundError(str(error).replace(target, os.fspath(path), 1)) from error

    def caller(self) -> Caller:
        """What the calls of this client have in common; for this package."""
        return Caller(self.address, self.job, self.timeout, self._transport, self._owner)

    def run(self, operation: Callable[[Session, str], _T], without_daemon: Callable[[], _T]) -> _T:
        """Runs `operation` in an open session; again, in a new one, if the daemon restarts."""
        wait_for_copies()
        deadline = time.monotonic() + self.timeout
        while True:
            session = session_for(self.address)
            try:
                self._connect(session, deadline)
            except DaemonUnavailableError as error:
                if self._on_unavailable != "fallback":
                    raise
                self._warn(error)
                return without_daemon()
            with session.operation() as session_id:
                try:
                    return operation(session, session_id)
                except SessionLostError as error:
                    session.lose(session_id)
                    if time.monotonic() >= deadline:
                        raise
                    let_go(error)
            time.sleep(RETRY_SECONDS)

    def _connect(self, session: Session, deadline: float) -> None:
        session.acquire(self, launch.start if self._on_unavailable == "start" else None)
        if self._on_unavailable == "fallback":
            deadline = min(deadline, time.monotonic() + RETURN_TIMEOUT)
        session.connect_within(deadline, start=self._on_unavailable == "start")

    def _warn(self, error: DaemonUnavailableError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{error} Until one answers, checkpoints are written by torch.save, and training "
                "waits for the disk.",
                RuntimeWarning,
                stacklevel=4,
            )


def _raise_first(errors: List[CheckpointError]) -> None:
    """Raises the first of the errors, which also tells of the others."""
    if not errors:
        return
    first = errors[0]
    if len(errors) > 1:
        others = "".join(f"\nAlso: {error}" for error in errors[1:])
        first = type(first)(
            f"{first}{others}", reason=first.reason, path=first.path, save=first.save
        )
    raise first
