"""P10 and P12: a hundred thousand small tensors, and a small state."""

import itertools
import os
import tempfile

import torch
from daemon import Daemon
from settings import median, median_ratio, remove, timed
from state import SHARED_DIR
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.06
FLOATS = 64
SMALL_TENSORS, SMALL_BYTES = 10, 1_000_000


def measure(settings):
    with Daemon(settings.daemon, settings.budget) as daemon:
        subject = Ckptd(daemon.address)
        with tempfile.TemporaryDirectory(prefix="ckptd-bench-", dir=SHARED_DIR) as tmpfs:
            file = os.path.join(tmpfs, "torch.pt")
            goals = _many(settings, subject, file) + _small(settings, subject, file)
        subject.close()
    return goals


def _save(settings, subject, state):
    """Seconds of the call alone; the file goes."""
    path = settings.path()
    taken, _ = timed(subject.save, state, path)
    subject.wait()
    remove(path)
    return taken


def _many(settings, subject, file):
    count = 2000 if settings.quick else 100_000
    tensors = [torch.full((FLOATS,), float(i)) for i in range(count)]
    numbers = itertools.count()
    _save(settings, subject, {f"warm.{i}": tensor for i, tensor in enumerate(tensors)})

    def sample():
        # New names are a structure that was never seen.
        prefix = f"round{next(numbers)}"
        state = {f"{prefix}.{i}": tensor for i, tensor in enumerate(tensors)}
        result = {"torch": timed(torch.save, state, file)[0]}
        for key in ("first", "next"):
            result[key] = _save(settings, subject, state)
            torch._foreach_add_(tensors, 1)
        return result

    samples = settings.repeat(SHARE, sample, least=settings.rounds)

    def goal(key, what, bound):
        return Goal(
            "P10",
            f"{count} tensors of {FLOATS} floats: save, for each tensor, {what}",
            median(samples, key) / count * 1e6,
            "µs",
            "torch.save for each tensor, to tmpfs",
            median(samples, "torch") / count * 1e6,
            median_ratio(samples, key, "torch"),
            "≤",
            bound,
            len(samples),
        )

    return [
        goal("first", "of a new structure", 0.5),
        goal("next", "of the same structure again", 0.15),
    ]


def _small(settings, subject, file):
    count = SMALL_BYTES // SMALL_TENSORS // 4
    state = {f"layer{i}": torch.full((count,), float(i)) for i in range(SMALL_TENSORS)}
    tensors = list(state.values())

    def sample():
        theirs = timed(torch.save, state, file)[0]
        ours = _save(settings, subject, state)
        torch._foreach_add_(tensors, 1)
        return {"torch": theirs, "save": ours}

    sample()
    samples = settings.repeat(SHARE / 6, sample, rounds=10 if settings.quick else 100)
    return [
        Goal(
            "P12",
            "save of 1 MB in 10 tensors",
            1000 * median(samples, "save"),
            "ms",
            "torch.save to tmpfs",
            1000 * median(samples, "torch"),
            median_ratio(samples, "save", "torch"),
            "≤",
            1.5,
            len(samples),
        )
    ]
