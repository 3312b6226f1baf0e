"""The helper of relay.py: a program of its own, which needs nothing but grpc.

Usage: relay_process.py ADDRESS FD, where FD is the control socket.
"""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import struct
import sys
import threading
from typing import Any, Dict, Iterator, Optional, Tuple

MESSAGE, STATUS = b"m", b"s"
_HEAD = struct.Struct("<cI")


def read_frame(connection: socket.socket) -> Optional[Tuple[bytes, bytes]]:
    """Type and content of the next frame; None at the end of the stream. Raises OSError."""
    head = _read(connection, _HEAD.size)
    if head is None:
        return None
    kind, size = _HEAD.unpack(head)
    data = _read(connection, size)
    return None if data is None else (kind, data)


def write_frame(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Writes one frame. Raises OSError."""
    connection.sendall(_HEAD.pack(kind, len(data)))
    connection.sendall(data)


def _read(connection: socket.socket, size: int) -> Optional[bytes]:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if count == 0:
            return None
        done += count
    return bytes(data)


def _requests(connection: socket.socket) -> Iterator[bytes]:
    for _, data in iter(lambda: read_frame(connection), None):
        yield data


def _serve(channel: Any, connection: socket.socket) -> None:
    """Makes the one call that `connection` asks for."""
    import grpc

    status: Dict[str, Any] = {"code": "OK", "details": "", "trailer": []}
    requests = _requests(connection)
    try:
        header = json.loads(next(requests))
        request_kind, response_kind = header["kind"].split("_")
        call = getattr(channel, header["kind"])(header["method"])
        argument = requests if request_kind == "stream" else next(requests)
        answer = call(argument, timeout=header["timeout"])
        for response in answer if response_kind == "stream" else [answer]:
            write_frame(connection, MESSAGE, response)
    except grpc.RpcError as error:
        trailer = [
            (key, base64.b64encode(value).decode())
            for key, value in error.trailing_metadata() or ()
            if isinstance(value, bytes)
        ]
        status = {"code": error.code().name, "details": error.details() or "", "trailer": trailer}
    except (OSError, StopIteration):
        connection.close()  # the caller has given the call up
        return
    try:
        write_frame(connection, STATUS, json.dumps(status).encode())
    except OSError:
        pass
    connection.close()


def main() -> None:
    """Takes a socket for each call until the control socket closes."""
    import grpc

    address, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    limit = 64 << 20
    options = [
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.enable_http_proxy", 0),
    ]
    channel = grpc.insecure_channel(address, options=options)
    while True:
        data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
        if not data:
            os._exit(0)  # with every call that is still open
        for _, _, rights in ancillary:
            (fd,) = array.array("i", rights)
            connection = socket.socket(fileno=fd)
            threading.Thread(target=_serve, args=(channel, connection), daemon=True).start()


if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules are no top-level ones
    main()
