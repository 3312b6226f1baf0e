"""P13: what the other backends of the daemon cost beside torch: the same state, saved by each."""

import random

from daemon import Daemon
from settings import median, median_ratio, remove, timed
from state import SNAPSHOT
from subjects import Ckptd

from rows.goal import Goal

# For each of them: in pairs, of which there are the more the less the disk is to show in their median.
SHARE = 0.05
PAIRS = 2
REFERENCE, OTHERS = "torch", ("xla", "safetensors", "xla-xser")
# Its image is copied to, as all are, but written by a host process: a file for each tensor.
MANY_FILES = "xla-xser"


def measure(settings):
    with Daemon(settings.daemon, settings.budget) as daemon:
        subjects = {name: Ckptd(daemon.address, backend=name) for name in (REFERENCE, *OTHERS)}
        # What only the first saves pay is no part of it.
        for subject in subjects.values():
            for _ in range(2):
                _save(settings, subject, judge=True)
        goals = []
        for name in OTHERS:
            pair = subjects[name], subjects[REFERENCE]
            samples = settings.repeat(
                SHARE,
                lambda pair=pair: _sample(settings, *pair),
                rounds=settings.rounds * (1 if name == MANY_FILES else PAIRS),
                least=settings.rounds,
            )
            goals += _goals(name, samples, len(settings.state.tensors))
        for subject in subjects.values():
            subject.close()
    return goals


def _save(settings, subject, judge=False):
    """Seconds of the call, and until it is durable. Raises RuntimeError for what is no snapshot."""
    state, path = settings.state, settings.path()

    def save():
        stall, _ = timed(subject.save, state.tensors, path)
        subject.wait()
        return stall

    durable, stall = timed(save)
    if judge:
        state.step()
        if state.judge(subject.client.load(path, backend=subject.backend)) != SNAPSHOT:
            raise RuntimeError(f"what {subject.backend} has written is not what was saved")
    remove(path)
    remove(f"{path}.tensors")  # of xla-xser
    return {"stall": stall, "durable": durable}


def _sample(settings, other, reference):
    """A save by each, in a drawn order: whoever comes second finds another disk."""
    order = random.sample([other, reference], 2)
    taken = {subject: _save(settings, subject) for subject in order}
    beside = {f"{key} by torch": seconds for key, seconds in taken[reference].items()}
    return {**taken[other], **beside}


def _goals(name, samples, tensors):
    def goal(key, what, note=""):
        beside = f"{key} by torch"
        return Goal(
            "P13",
            f"{name}: {what}",
            median(samples, key),
            "s",
            "the same by torch, beside it",
            median(samples, beside),
            median_ratio(samples, key, beside),
            "≤",
            1.05,
            len(samples),
            note,
        )

    stall, durable = "stall of a save", "from the call until it is durable"
    if name == MANY_FILES:
        files = f"{tensors + 1} files, by a host process: durable after"
        return [goal("stall", stall, f"{files} {1000 * median(samples, 'durable'):.0f} ms")]
    return [goal("stall", stall), goal("durable", durable)]
