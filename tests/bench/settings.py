"""What a run is about: one object that all parts share."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import statistics
import sys
import time

from limits import Limits
from state import SharedFile, State


_START = time.monotonic()


@dataclasses.dataclass
class Settings:
    """A run. Children get it by being forked."""

    size: int  # bytes of the state
    rounds: int  # samples of which a median is made
    folder: str  # on the disk that is measured; everything in it is the run's
    build: str  # where the binaries are
    seconds: float  # what the whole run may take
    quick: bool
    log: str  # for what children say

    def __post_init__(self):
        self.shared = SharedFile(self.size)
        self.scratch = SharedFile(self.size)
        self.state = State(self.shared, self.size)
        self.state.fill()
        self.limits = Limits(self.scratch, self.folder)
        self._numbers = itertools.count()

    @property
    def daemon(self):
        return os.path.join(self.build, "bin", "ckptd")

    @property
    def budget(self):
        """Staging memory of a daemon: what two saves at a time need, and some."""
        return 4 * self.size + (64 << 20)

    def path(self, name="checkpoint.pt"):
        """A path in the folder that no one has had."""
        return os.path.join(self.folder, f"{os.getpid()}-{next(self._numbers)}-{name}")

    def repeat(self, share, sample, rounds=None, least=3, since=None):
        """Calls `sample` `rounds` times; fewer, but `least`, where that takes more than `share` of
        the run's time from `since`, or now, on. Returns what it gave."""
        end = (since or time.monotonic()) + share * self.seconds
        samples = []
        for _ in range(rounds or self.rounds):
            if len(samples) >= least and time.monotonic() > end:
                break
            samples.append(sample())
        return samples


def say(text):
    """Progress, with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _START), 60)
    print(f"{minutes:2}:{seconds:02} {text}", file=sys.stderr, flush=True)


def median(samples, key):
    return statistics.median(sample[key] for sample in samples)


def median_ratio(samples, above, below):
    """The median of the samples' own ratios, for each has its own limits."""
    return statistics.median(sample[above] / sample[below] for sample in samples)


def remove(path):
    """A file or folder that may be missing. It is gone from the disk, too, at the end: a file system
    that discards what is deleted does so in the next sync, whoever's it is."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    os.sync()


def timed(function, *arguments, **options):
    """(Seconds, what it returned.)"""
    start = time.perf_counter()
    value = function(*arguments, **options)
    return time.perf_counter() - start, value
