"""What the arguments of users may be: a ValueError says what else they could have written."""

from __future__ import annotations

from typing import Iterable

from .v1 import checkpoint_pb2 as pb

#: Values of `visible`.
VISIBLE = {
    "when_durable": pb.BeginSaveRequest.VISIBILITY_UNSPECIFIED,
    "at_return": pb.BeginSaveRequest.AT_RETURN,
}


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value`, of the argument `name`, is one of `choices`."""
    if value not in choices:
        allowed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name}: {value!r} is not supported; use {allowed}.")


def check_visible(visible: str, overlaps: bool) -> None:
    """Raises ValueError for no value of VISIBLE, or one that does not go with an overlap."""
    check_choice("visible", visible, VISIBLE)
    if overlaps and visible != "when_durable":
        raise ValueError(f"overlap: does not go with visible={visible!r}; leave out one.")
