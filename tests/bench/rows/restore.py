"""P5 and P6: loading a checkpoint that is still in memory, and one that is only on the disk."""

import torch
from daemon import Daemon
from limits import drop_cache
from settings import median, median_ratio, remove, timed
from state import SNAPSHOT
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.12


def measure(settings):
    with Daemon(settings.daemon, settings.budget) as daemon:
        subject = Ckptd(daemon.address, reserve=settings.state.tensors)
        samples = settings.repeat(SHARE, lambda: _sample(settings, subject))
        subject.close()
    return _memory_goals(samples) + _disk_goals(samples)


def _sample(settings, subject):
    state = settings.state
    path = settings.path()
    subject.save(state.tensors, path)
    subject.wait()
    result = {"memcpy": settings.limits.fastest_memcpy(list(state.tensors.values()))}
    _load(state, result, "memory", lambda: subject.client.load(path))
    # A new daemon has no image of it.
    with Daemon(settings.daemon, settings.budget) as daemon:
        cold = Ckptd(daemon.address, reserve=state.tensors)
        drop_cache(path)
        result["direct"] = settings.limits.direct_read(path)
        drop_cache(path)
        _load(state, result, "disk", lambda: cold.client.load(path))
        cold.close()
    drop_cache(path)
    _load(state, result, "torch", lambda: torch.load(path, weights_only=True))
    remove(path)
    return result


def _load(state, result, name, load):
    """Adds NAME, the seconds of `load`, and NAME_written: with the first write to all tensors,
    as far as it costs more than the second."""
    result[name], loaded = timed(load)
    first, second = (timed(torch._foreach_add_, list(loaded.values()), 1)[0] for _ in range(2))
    result[f"{name}_written"] = result[name] + max(0, first - second)
    if state.judge(loaded, -2) != SNAPSHOT:
        raise RuntimeError(f"what was loaded from {name} is not what was saved")


def _memory_goals(samples):
    def goal(what, key, bound):
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
        )

    return [
        goal("load of a checkpoint in memory, and its first write", "memory_written", 0.75),
        goal("load of a checkpoint in memory", "memory", 0.25),
    ]


def _disk_goals(samples):
    def goal(what, limit, key, bound):
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
        )

    what = "load from the disk, cold, verified, and its first write"
    return [
        goal(what, "raw O_DIRECT read; ratio of speeds", "direct", 0.85),
        goal(what, "torch.load, cold, and its first write; ratio of speeds", "torch_written", 4),
    ]
