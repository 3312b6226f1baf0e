"""Moves checkpoints through gRPC, for a process that shares no memory or files with the daemon."""

from __future__ import annotations

import ctypes
import io
from contextlib import contextmanager
from typing import Iterator, Tuple

import torch

from . import send_buffer
from .capture import Captured
from .device import device_bytes
from .session import Session
from .v1 import checkpoint_pb2 as pb

# Measured: 1 MiB is a tenth slower, 256 KiB by half.
_PIECE_BYTES = 4 << 20
# Field 3 of WriteSaveRequest, whose bytes follow their length.
_DATA_TAG = bytes([pb.WriteSaveRequest.DATA_FIELD_NUMBER << 3 | 2])


def write(
    session: Session, captured: Captured, response: pb.BeginSaveResponse, timeout: float
) -> None:
    """Streams pickle and storages into the image of a save that is STAGING.

    Holds one chunk at a time. Raises grpc.RpcError.
    """
    send_buffer.widen(session.address)
    session.call("WriteSave", _requests(captured, response), timeout)


def read(session: Session, load_id: str, timeout: float) -> io.BytesIO:
    """The whole file of a load, in memory. Raises grpc.RpcError."""
    content = io.BytesIO()
    for message in session.call("ReadLoad", pb.ReadLoadRequest(load_id=load_id), timeout):
        content.write(message.data)
    content.seek(0)
    return content


def _requests(captured: Captured, response: pb.BeginSaveResponse) -> Iterator[bytes]:
    """Serialized WriteSaveRequests. Protobuf would copy the bytes of each two more times."""
    for offset, data in _pieces(captured, response):
        head = pb.WriteSaveRequest(name=response.save.name, offset=offset).SerializeToString()
        yield b"".join((head, _DATA_TAG, _varint(len(data)), data))


def _pieces(
    captured: Captured, response: pb.BeginSaveResponse
) -> Iterator[Tuple[int, memoryview]]:
    """Offsets in the image and the bytes that go there, each valid until the next one."""
    pickle = memoryview(captured.pickle)
    for start in range(0, len(pickle), _PIECE_BYTES):
        yield response.object_offset + start, pickle[start : start + _PIECE_BYTES]
    for record, offset in zip(captured.records, response.tensor_offsets):
        for start in range(0, record.size_bytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, record.size_bytes - start)
            with _host_bytes(record.storage, start, size) as data:
                yield offset + start, data


@contextmanager
def _host_bytes(storage: torch.UntypedStorage, start: int, size: int) -> Iterator[memoryview]:
    if storage.device.type != "cpu":
        storage, start = device_bytes(storage, start + size)[start:].cpu().untyped_storage(), 0
    array = (ctypes.c_ubyte * size).from_address(storage.data_ptr() + start)
    yield memoryview(array).cast("B")


def _varint(value: int) -> bytes:
    """`value` >= 0 as Protobuf writes it: seven bits to a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
