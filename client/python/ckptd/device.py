"""Copies from the memory of devices straight to the final offsets in an image.

With CUDA the image is pinned, each device copies on a stream of its own beside what it computes,
and there is one synchronisation at the end.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Sequence

import torch

from .shm import Mapping
from .v1 import checkpoint_pb2 as pb


@dataclass
class Copy:
    """One storage of a device, to an address of this process."""

    storage: torch.UntypedStorage
    target: int
    size_bytes: int


def device_bytes(storage: torch.UntypedStorage, size_bytes: int) -> torch.Tensor:
    """The first bytes of a storage as a tensor uint8[size_bytes] on its device; no copy."""
    view = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return view.set_(storage, 0, (size_bytes,), (1,))


def is_used(storages: Iterable[torch.UntypedStorage]) -> bool:
    """Whether any of them is on a device, which copies by itself."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return any(one.device.type == "cuda" for one in storages)


def mark(storages: Iterable[torch.UntypedStorage]) -> List[Any]:
    """What the streams of this thread have to do before the storages are as they are to be saved.

    For `copy_all` in another thread, which has other streams.
    """
    devices = {storage.device for storage in storages if storage.device.type == "cuda"}
    return [torch.cuda.current_stream(device).record_event() for device in devices]


def copy_all(
    copies: Sequence[Copy], mapping: Mapping, image: pb.Image, after: Sequence[Any]
) -> None:
    """Copies to `mapping`, which is of `image`; returns when all is there.

    after: events of `mark`; what this thread's streams have to do if there are none.
    """
    streams: Dict[torch.device, Any] = {}
    for copy in copies:
        source = device_bytes(copy.storage, copy.size_bytes)
        memory = (ctypes.c_char * copy.size_bytes).from_address(copy.target)
        target = torch.frombuffer(memory, dtype=torch.uint8)
        if source.device.type != "cuda":
            target.copy_(source)
            continue
        stream = streams.get(source.device)
        if stream is None:
            mapping.pin.hold(mapping.address, image)
            stream = streams[source.device] = _side_stream(source.device, after)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
    for stream in streams.values():
        stream.synchronize()


_side_streams: Dict[torch.device, Any] = {}


def _side_stream(device: torch.device, after: Sequence[Any]) -> Any:
    stream = _side_streams.get(device)
    if stream is None:
        made = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = _side_streams.setdefault(device, made)
    for event in after:
        stream.wait_event(event)
    if not after:
        stream.wait_stream(torch.cuda.current_stream(device))
    return stream
