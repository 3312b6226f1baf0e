"""P5 and P6: loading a checkpoint that is still in memory, and one that is only on the disk."""

import functools
import random

import torch
from daemon import Daemon
from forked import Child
from limits import drop_cache
from settings import median, median_ratio, remove, timed
from state import SNAPSHOT
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.12


class Restarted:
    """A trainer that has just been started again."""

    def __init__(self, settings):
        self.settings = settings

    def load(self, address, path):
        """The seconds of loading what is in memory there, and its limits."""
        settings = self.settings
        result = {"memcpy": settings.limits.fastest_memcpy(list(settings.state.tensors.values()))}
        subject = Ckptd(address)
        subject.client.flush()  # connects, as what it does first would
        _load(settings.state, result, "memory", lambda: subject.client.load(path))
        subject.close()
        again = settings.state.views_of(settings.scratch.map_again())
        first, second = _write_twice(again)
        result["mapping"] = max(0, first - second)
        return result

    def close(self):
        """Nothing is held."""


def measure(settings):
    # The processes first: one that has used gRPC is not forked.
    restarted = [
        Child(functools.partial(Restarted, settings), settings.log) for _ in range(settings.rounds)
    ]
    unused = iter(restarted)
    with Daemon(settings.daemon, settings.budget) as daemon:
        samples = settings.repeat(
            SHARE, lambda: _sample(settings, daemon, next(unused)), least=settings.rounds
        )
    for child in restarted:
        child.close()
    return _memory_goals(samples) + _disk_goals(samples)


def _sample(settings, daemon, restarted):
    state = settings.state
    path = settings.path()
    result = {}
    for use in ("new", "same"):
        subject = Ckptd(daemon.address, reserve=state.tensors)
        subject.save(state.tensors, path)
        subject.wait()
        if use == "new":
            # While another is connected, each gets a copy.
            subject.close()
            result["new"] = restarted.call("load", daemon.address, path)
            restarted.close()
    result["memcpy"] = settings.limits.fastest_memcpy(list(state.tensors.values()))
    _load(state, result, "memory", lambda: subject.client.load(path))
    subject.close()
    _read_cold(settings, result, path)
    remove(path)
    return result


def _read_cold(settings, result, path):
    """What the disk is read for, in a drawn order: it bursts, and whoever comes later pays for it."""
    state = settings.state
    # A new daemon has no image of it.
    with Daemon(settings.daemon, settings.budget) as other:
        cold = Ckptd(other.address, reserve=state.tensors)
        ways = {
            "disk": lambda: cold.client.load(path),
            "torch": lambda: torch.load(path, weights_only=True),
            "direct": None,
        }
        for name in random.sample(list(ways), len(ways)):
            drop_cache(path)
            if name == "direct":
                result[name] = settings.limits.direct_read(path)
            else:
                _load(state, result, name, ways[name])
        cold.close()


def _load(state, result, name, load):
    """Adds NAME, the seconds of `load`, and NAME_written: with the first write to all tensors,
    as far as it costs more than the second."""
    result[name], loaded = timed(load)
    first, second = _write_twice(loaded)
    result[f"{name}_written"] = result[name] + max(0, first - second)
    if state.judge(loaded, -2) != SNAPSHOT:
        raise RuntimeError(f"what was loaded from {name} is not what was saved")


def _write_twice(tensors):
    """Seconds of a first and a second write to all of them."""
    return [timed(torch._foreach_add_, list(tensors.values()), 1)[0] for _ in range(2)]


def _memory_goals(samples):
    def goal(samples, what, key, bound, note=""):
        return Goal(
            "P5",
            what,
            median(samples, key),
            "s",
            "memcpy of its bytes",
            median(samples, "memcpy"),
            median_ratio(samples, key, "memcpy"),
            "≤",
            bound,
            len(samples),
            note,
        )

    what = "load of a checkpoint in memory"
    restarted = [sample["new"] for sample in samples]
    mapping = median_ratio(restarted, "mapping", "memcpy")
    note = f"the first write to any new mapping of memory that is there: {mapping:.2f} of the memcpy"
    return [
        goal(samples, f"{what}, and its first write, by the process that saved", "memory_written", 0.75),
        goal(samples, what, "memory", 0.25),
        goal(restarted, f"{what}, and its first write, by a new process", "memory_written", 0.75, note),
        goal(restarted, f"{what}, by a new process", "memory", 0.25),
    ]


def _disk_goals(samples):
    def goal(what, limit, key, bound, note=""):
        return Goal(
            "P6",
            what,
            median(samples, "disk_written"),
            "s",
            limit,
            median(samples, key),
            median_ratio(samples, key, "disk_written"),
            "≥",
            bound,
            len(samples),
            note,
        )

    what = "load from the disk, cold, verified, and its first write"
    raw = median_ratio(samples, "torch_written", "direct")
    note = f"the raw read, which checks and writes nothing, has {raw:.2f}"
    return [
        goal(what, "raw O_DIRECT read; ratio of speeds", "direct", 0.85),
        goal(what, "torch.load, cold, and its first write; ratio of speeds", "torch_written", 4, note),
    ]
