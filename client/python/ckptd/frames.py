"""The code that has called this code."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Iterator, Optional


def callers() -> Iterator[FrameType]:
    """The frames above the one that calls this, from the next one up."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
