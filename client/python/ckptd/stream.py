"""Moves checkpoints through gRPC, for a process that shares no memory or files with the daemon."""

from __future__ import annotations

import ctypes
import io
from typing import Iterator, Tuple

import torch

from .capture import Captured
from .session import Session
from .shm import device_bytes
from .v1 import checkpoint_pb2 as pb

_CHUNK_BYTES = 1 << 20


def write(
    session: Session, captured: Captured, response: pb.BeginSaveResponse, timeout: float
) -> None:
    """Streams pickle and storages into the image of a save that is STAGING.

    Holds one chunk at a time. Raises grpc.RpcError.
    """
    session.call("WriteSave", _requests(captured, response), timeout)


def read(session: Session, load_id: str, timeout: float) -> io.BytesIO:
    """The whole file of a load, in memory. Raises grpc.RpcError."""
    content = io.BytesIO()
    for message in session.call("ReadLoad", pb.ReadLoadRequest(load_id=load_id), timeout):
        content.write(message.data)
    content.seek(0)
    return content


def _requests(captured: Captured, response: pb.BeginSaveResponse) -> Iterator[pb.WriteSaveRequest]:
    name = response.save.name
    for offset, data in _chunks(captured, response):
        yield pb.WriteSaveRequest(name=name, offset=offset, data=data)


def _chunks(captured: Captured, response: pb.BeginSaveResponse) -> Iterator[Tuple[int, bytes]]:
    for start in range(0, len(captured.pickle), _CHUNK_BYTES):
        yield response.object_offset + start, bytes(captured.pickle[start : start + _CHUNK_BYTES])
    for record, offset in zip(captured.records, response.tensor_offsets):
        for start in range(0, record.size_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, record.size_bytes - start)
            yield offset + start, _bytes_at(record.storage, start, size)


def _bytes_at(storage: torch.UntypedStorage, start: int, size: int) -> bytes:
    if storage.device.type == "cpu":
        return ctypes.string_at(storage.data_ptr() + start, size)
    part = device_bytes(storage, start + size)[start:].cpu()
    return ctypes.string_at(part.data_ptr(), size)
