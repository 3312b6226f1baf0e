"""Memory of images registered with CUDA, so that a device writes to it by itself.

To register costs about what a copy does: it is done once for each mapping, for as long as the pages
under it are the same.
"""

from __future__ import annotations

import logging
import mmap
from typing import Any, Optional, Tuple

import torch

from .v1 import checkpoint_pb2 as pb

_log = logging.getLogger("ckptd")


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class Pin:
    """The registration of one mapping."""

    def __init__(self) -> None:
        self._address: Optional[int] = None
        # Pages and cuts of the image that is registered, or that could not be.
        self._tried: Optional[Tuple[int, int]] = None

    def hold(self, address: int, image: pb.Image) -> None:
        """Registers the pages of `image`, mapped at `address`, unless they are registered.

        Where CUDA refuses, the copies go through memory of its own, and are slower.
        """
        pages = -(-image.size_bytes // mmap.PAGESIZE)
        if self._tried == (pages, image.cuts):
            return
        self.release()
        self._tried = (pages, image.cuts)
        error = int(_cudart().cudaHostRegister(address, pages * mmap.PAGESIZE, 0))
        if error == 0:
            self._address = address
        else:
            _log.debug("%s: cannot be registered with CUDA: error %d", image.path, error)

    def release(self) -> None:
        """Undoes the registration, which must be before the memory is unmapped."""
        if self._address is not None:
            _cudart().cudaHostUnregister(self._address)
        self._address = self._tried = None
