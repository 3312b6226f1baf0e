"""Tells whether an exception is under way that raising another one would mask."""

from __future__ import annotations

import sys
from typing import Optional

from ..frames import callers

# Where Lightning catches an exception of training and calls teardown before it raises it again.
_LIGHTNING_HANDLER = "_call_and_handle_interrupt"


def exception_in_flight() -> Optional[BaseException]:
    """The exception that is being handled further up the stack, if raising would mask it.

    One that was being handled before training began, as where fit is called again in an `except`
    block, is not: it lies outside the frame in which Lightning guards this training.
    """
    exception = sys.exc_info()[1]
    if exception is None or exception.__traceback__ is None:
        return exception
    handler = exception.__traceback__.tb_frame
    for frame in callers():
        if frame is handler:
            break
        if frame.f_code.co_name == _LIGHTNING_HANDLER:
            return None
    return exception
