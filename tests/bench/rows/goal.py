"""One line of the table of goals."""

import dataclasses
import operator
from typing import Optional

_BOUNDS = {"≤": operator.le, "≥": operator.ge}


@dataclasses.dataclass
class Goal:
    """What was measured, against what, and what it is to be.

    `ratio` is judged by `bound` and `goal`; where a figure has no limit to be divided by, it is the
    figure itself. `limit`: in words; `limit_figure`: in the unit of `figure`.
    """

    id: str
    what: str
    figure: Optional[float]
    unit: str
    limit: str
    limit_figure: Optional[float]
    ratio: Optional[float]
    bound: str
    goal: float
    samples: int
    note: str = ""

    @property
    def met(self):
        """None where it was not measured."""
        return None if self.ratio is None else _BOUNDS[self.bound](self.ratio, self.goal)

    def as_dict(self):
        return {**dataclasses.asdict(self), "met": self.met}


def unmeasured(name, why):
    """The line of a goal that could not be measured."""
    return Goal(name, why, None, "", "", None, None, "≤", 0, 0)
