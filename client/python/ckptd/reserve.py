"""Makes staging memory ready before the first save: the daemon its pages, we our page tables.

A page of tmpfs that exists still costs a process that maps it anew a fault, about 0.8 us each,
unless its page tables are filled ahead. An image that is only reserved may be another session's any
time: to populate a mapping changes no byte, and fails where the file was cut.
"""

from __future__ import annotations

import logging
import threading
from typing import Callable, Iterable

import grpc

from .errors import CheckpointError, SaveError
from .session import Session
from .shm import Mapping, NotSharedError
from .transfer import call
from .v1 import checkpoint_pb2 as pb

# The kernel keeps other threads from mapping memory while it populates a range: not for long.
_CHUNK_BYTES = 8 << 20

_log = logging.getLogger("ckptd")


def reserve(session: Session, request: pb.ReserveRequest, timeout: float, shared: bool) -> int:
    """Reserves; returns how many images fit. What takes long happens behind, unless request.wait.

    shared: whether to map the images, too. Raises SaveError.
    """
    response = call(
        session,
        "Reserve",
        request,
        timeout=timeout,
        waited_for="staging memory is still being made ready",
        kind=SaveError,
    )
    if not shared:
        return int(response.image_count)
    if request.wait:
        map_ahead(session, response.images)
    else:
        later = pb.ReserveRequest()
        later.CopyFrom(request)
        later.wait = True
        arguments = (session, later, timeout)
        name = "ckptd-reserve"
        threading.Thread(
            target=_map_when_ready, args=arguments, name=name, daemon=True
        ).start()
    return int(response.image_count)


def map_ahead(session: Session, images: Iterable[pb.Image]) -> None:
    """Maps free images and fills their page tables, by as many threads as copy."""
    for image in images:
        try:
            with session.mappings.hold_ahead(image) as mapping:
                _populate(session, mapping, image.size_bytes)
        except NotSharedError as error:
            _log.debug("%s: %s; not mapped ahead", session.address, error)


def _populate(session: Session, mapping: Mapping, size: int) -> None:
    starts = iter(range(mapping.populated_bytes, size, _CHUNK_BYTES))
    lock = threading.Lock()
    filled = [True]

    def run() -> None:
        while filled[0]:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            if not mapping.populate(start, min(start + _CHUNK_BYTES, size)):
                filled[0] = False

    tasks: list[Callable[[], None]] = [run] * session.copier.threads
    session.copier.run(tasks)
    if filled[0]:
        mapping.populated_bytes = max(mapping.populated_bytes, size)


def _map_when_ready(session: Session, request: pb.ReserveRequest, timeout: float) -> None:
    try:
        map_ahead(session, session.call("Reserve", request, timeout).images)
    except (grpc.RpcError, CheckpointError) as error:  # a save will tell, if it matters
        _log.debug("%s: cannot map images ahead: %s", session.address, error)
    finally:
        if session.id != request.session_id:
            session.mappings.close()
