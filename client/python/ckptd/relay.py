"""gRPC for a forked process: through a helper that was started afresh.

gRPC does not survive a fork: a child whose parent has used it hangs or aborts when it uses it too.
(GRPC_ENABLE_FORK_SUPPORT would help, but it must be set before anyone imports grpc, and it hangs
children of processes that have calls of their own open.) So such a child runs relay_process.py,
which knows nothing but gRPC, and hands it one socket for each call:

    child -> helper   header {method, kind, timeout}, then each request; then it shuts its side
    helper -> child   each response, then the status {code, details, trailer}

all in frames of a type byte, a length and that many bytes. The helper ends when the control socket
closes, which it does with the child, and its connection to the daemon ends with it.
"""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Optional, Tuple

import grpc

from . import relay_process
from .relay_process import MESSAGE, read_frame, write_frame

# Added to a call's deadline before the helper itself is given up.
_GRACE_SECONDS = 10.0


class RelayChannel:
    """What this package uses of grpc.Channel, by way of a helper process. Thread-safe."""

    def __init__(self, address: str) -> None:
        self._control, theirs = socket.socketpair()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(relay_process.__file__)), address, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the trainer alone
        )
        theirs.close()

    def unary_unary(self, method: str, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel.unary_unary."""
        return lambda request, timeout=None: self._one(
            "unary_unary", method, [request], timeout, codec
        )

    def stream_unary(self, method: str, **codec: Any) -> Callable[..., Any]:
        """As grpc.Channel.stream_unary."""
        return lambda requests, timeout=None: self._one(
            "stream_unary", method, requests, timeout, codec
        )

    def unary_stream(self, method: str, **codec: Any) -> Callable[..., "_Responses"]:
        """As grpc.Channel.unary_stream."""
        return lambda request, timeout=None: self._start(
            "unary_stream", method, [request], timeout, codec
        )

    def close(self) -> None:
        """Ends the helper, and with it every call."""
        self._control.close()
        self._process.wait()

    def abandon(self) -> None:
        """In a child of fork: closes this copy, so that the helper ends with the parent."""
        self._control.close()

    def _one(
        self,
        kind: str,
        method: str,
        requests: Iterable[Any],
        timeout: Optional[float],
        codec: Any,
    ) -> Any:
        responses = self._start(kind, method, requests, timeout, codec)
        found = list(responses)
        return found[0]

    def _start(
        self,
        kind: str,
        method: str,
        requests: Iterable[Any],
        timeout: Optional[float],
        codec: Any,
    ) -> "_Responses":
        encode = codec.get("request_serializer") or bytes
        ours, theirs = socket.socketpair()
        try:
            _send_socket(self._control, theirs)
            header = {"method": method, "kind": kind, "timeout": timeout}
            write_frame(ours, MESSAGE, json.dumps(header).encode())
            for request in requests:
                write_frame(ours, MESSAGE, encode(request))
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            # The call has ended before it took all: its status, if any, says why.
            pass
        finally:
            theirs.close()
        ours.settimeout(None if timeout is None else timeout + _GRACE_SECONDS)
        return _Responses(ours, codec.get("response_deserializer") or bytes)


class _Responses:
    """The responses of one call, and the error it ends with."""

    def __init__(self, connection: socket.socket, decode: Callable[[bytes], Any]) -> None:
        self._connection = connection
        self._decode = decode

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            frame = read_frame(self._connection)
        except OSError:
            frame = None
        if frame is None:
            self.cancel()
            raise RelayedError(grpc.StatusCode.UNAVAILABLE, "the gRPC helper process ended", ())
        kind, data = frame
        if kind == MESSAGE:
            return self._decode(data)
        self.cancel()
        status = json.loads(data)
        if status["code"] == "OK":
            raise StopIteration
        trailer = tuple((key, base64.b64decode(value)) for key, value in status["trailer"])
        raise RelayedError(grpc.StatusCode[status["code"]], status["details"], trailer)

    def cancel(self) -> None:
        """Gives the call up."""
        self._connection.close()


class RelayedError(grpc.RpcError):  # type: ignore[misc] # grpc has no types
    """The error of a call, as the helper has seen it."""

    def __init__(
        self, code: grpc.StatusCode, details: str, trailer: Tuple[Tuple[str, bytes], ...]
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details, self._trailer = code, details, trailer

    def code(self) -> grpc.StatusCode:
        """As grpc.Call.code."""
        return self._code

    def details(self) -> str:
        """As grpc.Call.details."""
        return self._details

    def trailing_metadata(self) -> Tuple[Tuple[str, bytes], ...]:
        """As grpc.Call.trailing_metadata, binary entries only."""
        return self._trailer


def _send_socket(control: socket.socket, connection: socket.socket) -> None:
    rights = array.array("i", [connection.fileno()])
    control.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
