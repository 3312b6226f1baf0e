"""P1, P2 and P4: what the field's own samples of ckptd say."""

import subjects
from settings import median, median_ratio

from rows.goal import Goal


def goals(rows):
    """`rows`: of the field; none where it did not run."""
    samples = {row.name: row.samples for row in rows}
    ours, first = samples.get(subjects.OURS), samples.get(subjects.OURS_FIRST)
    memcpy = "the faster of a 1- and a 2-thread warm memcpy into shared memory"
    made = []
    if ours:
        made.append(_stall("P1", "stall of a steady save", ours, memcpy, 1.15))
    if first:
        made.append(_stall("P2", "stall of the first save of a process", first, memcpy, 1.4))
    # How a save has come to the daemon makes no difference then.
    both = [*(ours or []), *(first or [])]
    if both:
        made.append(
            Goal(
                "P4",
                "from the return of save to durable",
                median(both, "after"),
                "s",
                "raw O_DIRECT write and fdatasync of the same bytes; ratio of speeds",
                median(both, "direct"),
                median_ratio(both, "direct", "after"),
                "≥",
                0.95,
                len(both),
            )
        )
    return made


def _stall(name, what, samples, memcpy, goal):
    return Goal(
        name,
        what,
        median(samples, "stall"),
        "s",
        memcpy,
        median(samples, "memcpy"),
        median_ratio(samples, "stall", "memcpy"),
        "≤",
        goal,
        len(samples),
    )
