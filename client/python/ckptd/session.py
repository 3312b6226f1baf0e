"""The session with a daemon: one in each process for each address, shared by all clients.

A session opens itself when it is first needed, and again after the daemon restarted. A child of a
fork starts with sessions of its own and leaves those of its parent alone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
import weakref
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional

import grpc

from . import names, rpc
from .copier import Copier
from .errors import DaemonUnavailableError, SessionLostError, let_go
from .ledger import Ledger
from .named import LastNamed
from .pickle_writer import Structures
from .relay import RelayChannel
from .shm import MappingCache
from .v1 import checkpoint_pb2 as pb

#: Seconds that the daemon may take to answer a call that does not wait for anything.
ANSWER_TIMEOUT = 30.0
#: Seconds that a daemon which went away gets to come back by itself, before another is started or
#: the client does without.
RETURN_TIMEOUT = 5.0
#: Seconds that it gets where somebody waits for what it had accepted.
LONG_RETURN_TIMEOUT = 60.0
#: Between two attempts to reach a daemon.
RETRY_SECONDS = 0.05


class Session:
    """A connection to the daemon at one address, and what belongs to it. Thread-safe."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.mappings = MappingCache()
        self.copier = Copier()
        self.structures = Structures()
        self.last_named = LastNamed()
        self.ledger = Ledger()
        self._lock = threading.RLock()
        self._operations = 0
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._channel: Optional[rpc.Channel] = None
        self._stub: Optional[rpc.Stub] = None
        self._stream: Any = None  # holds the session open
        self._id = ""
        self._was_open = False  # and nobody has closed it on purpose
        self._start: Optional[Callable[[Session], None]] = None

    @property
    def id(self) -> str:
        """The session's id; "" while it is closed."""
        return self._id

    def connect(self) -> None:
        """Opens the session unless it is open. Raises DaemonUnavailableError."""
        with self._lock:
            if self._id:
                return
            self._close_channel()
            _probe(self.address)
            try:
                self._open()
                self.ledger.ask_orphans(self.id, self.get_save)
            except grpc.RpcError as error:
                self._close_channel()
                raise DaemonUnavailableError(
                    f"{self.address}: the daemon does not answer: {error.details()}",
                    reason=error.code().name,
                ) from error

    def connect_within(self, deadline: float, start: bool = True) -> None:
        """Opens the session unless it is open; waits for a daemon that went away, or is about to.

        deadline: as time.monotonic() tells it. One that never was there is not waited for.
        start:    whether to start a daemon, where a user of the session allows that: soon after
                  the deadline of its return.
        Raises DaemonUnavailableError.
        """
        start_at = time.monotonic() + (RETURN_TIMEOUT if self._was_open else 0.0)
        while True:
            try:
                return self.connect()
            except DaemonUnavailableError as error:
                now = time.monotonic()
                draining = error.reason == "DRAINING"
                if start and self._start is not None and now >= start_at and not draining:
                    return self._start(self)
                if now >= deadline or not (self._was_open or draining):
                    raise
                let_go(error)
            time.sleep(RETRY_SECONDS)

    def call(self, method: str, request: Any, timeout: float) -> Any:
        """Makes one call, or raises grpc.RpcError. SessionLostError if the session is closed."""
        stub = self._stub
        try:
            if stub is not None:
                return getattr(stub, method)(request, timeout=timeout)
        except ValueError:  # what gRPC raises for a closed channel
            pass
        raise SessionLostError(f"{self.address}: the session was closed before {method}.")

    def get_save(self, name: str) -> pb.Save:
        """The save of that name. Raises grpc.RpcError."""
        save: pb.Save = self.call("GetSave", pb.GetSaveRequest(name=name), ANSWER_TIMEOUT)
        return save

    @contextmanager
    def operation(self) -> Iterator[str]:
        """Keeps `release` from closing the session; gives its id."""
        with self._lock:
            session_id = self._id
            self._operations += 1
        try:
            yield session_id
        finally:
            with self._lock:
                self._operations -= 1

    def lose(self, session_id: str) -> None:
        """Closes the session of that id, so that the next `connect` opens a new one."""
        with self._lock:
            if self._id == session_id:
                self._close_channel()

    def acquire(self, user: Any, start: Optional[Callable[[Session], None]] = None) -> None:
        """Notes that `user` needs the session open; it holds no reference to it.

        start: what starts a daemon, if the user wants one where there is none.
        """
        with self._lock:
            self._users.add(user)
            self._start = start or self._start

    def release(self, user: Any) -> None:
        """Closes the session when its last user lets go and nothing is under way."""
        with self._lock:
            self._users.discard(user)
            if not self._users and self._operations == 0:
                self._close_channel()
                self._was_open = False
                self._start = None
                self.mappings.close()
                self.copier.close()

    def close(self) -> None:
        """Closes the session at once; calls that are under way fail."""
        with self._lock:
            self._close_channel()

    def abandon(self) -> None:
        """In a forked child: lets go of what the parent's session must not be kept open by."""
        self.mappings.forget()
        if isinstance(self._channel, RelayChannel):
            self._channel.abandon()
            if self._stream is not None:
                self._stream.cancel()

    def _open(self) -> None:
        channel = self._channel = rpc.open_channel(self.address)
        if not rpc.is_serving(channel, ANSWER_TIMEOUT):
            self._close_channel()
            raise DaemonUnavailableError(
                f"{self.address}: the daemon is shutting down and takes no new work.",
                reason="DRAINING",
            )
        self._stub = rpc.Stub(channel)
        stream = self._stub.OpenSession(pb.OpenSessionRequest(client=names.client_name()))
        watchdog = threading.Timer(ANSWER_TIMEOUT, stream.cancel)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._id = next(stream).session_id
        finally:
            watchdog.cancel()
        self._stream = stream
        self._was_open = True

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._stream is not None:
            _take_end(self._stream)
        self._channel = self._stub = self._stream = None
        self._id = ""


def _take_end(stream: Any) -> None:
    """Hears how a stream ends whose channel is closed: until then gRPC keeps the connection.

    To cancel the stream would not do: it would say so, and not look.
    """
    try:
        for _ in stream:
            pass
    except grpc.RpcError as end:
        let_go(end)


def _probe(address: str) -> None:
    """Finds out at once, without gRPC's back-off, that nobody listens on a unix socket."""
    path = names.socket_path(address)
    if not path:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_TIMEOUT)
        try:
            probe.connect(path)
        except OSError as error:
            raise DaemonUnavailableError(
                f"{address}: no daemon listens here: {error.strerror or error}. Start `ckptd`, or "
                'use Client(on_unavailable="start").',
                reason="UNAVAILABLE",
            ) from error


# ---- One session for each address, and fork ------------------------------------------------------

_lock = threading.Lock()
_sessions: Dict[str, Session] = {}


def session_for(address: str) -> Session:
    """This process's session with the daemon at `address`; it may not be open yet."""
    with _lock:
        session = _sessions.get(address)
        if session is None:
            session = _sessions[address] = Session(address)
        return session


def all_sessions() -> List[Session]:
    """The sessions of this process."""
    with _lock:
        return list(_sessions.values())


def _after_fork_in_child() -> None:
    global _lock, _sessions
    for session in _sessions.values():
        session.abandon()
        # For ever: gRPC objects can be neither used nor freed in a child.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _sessions = {}
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
