"""P8: how much slower a CPU-bound training step is while a save persists."""

import functools
import statistics
import threading
import time

import torch
from daemon import Daemon
from forked import Child
from settings import remove, timed
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.08
WIDTH, BATCH = 1024, 64
# Before, between and after: a machine whose speed drifts is no slowdown by a save.
ALONE_SECONDS, QUICK_ALONE_SECONDS = 0.5, 0.1


class Trainer:
    """A small network whose step keeps every core busy for some milliseconds."""

    def __init__(self):
        wide = torch.nn.Linear(WIDTH, WIDTH)
        self.net = torch.nn.Sequential(wide, torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
        self.parameters = list(self.net.parameters())
        self.batch = torch.randn(BATCH, WIDTH)

    def step(self):
        loss = self.net(self.batch).square().mean()
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_add_(self.parameters, gradients, alpha=-1e-3)

    def steps_until(self, done):
        """Seconds of each step until `done()`; at least one."""
        taken = [timed(self.step)[0]]
        while not done():
            taken.append(timed(self.step)[0])
        return taken


class RawWriter:
    """A process that only writes: what no writer can do without."""

    def __init__(self, settings):
        self.settings = settings

    def write(self):
        self.settings.limits.direct_write(self.settings.state.nbytes)

    def close(self):
        """Nothing is held."""


def measure(settings):
    raw = Child(functools.partial(RawWriter, settings), settings.log)
    raw.call("write")
    trainer = Trainer()
    with Daemon(settings.daemon, settings.budget) as daemon:
        subject = Ckptd(daemon.address, reserve=settings.state.tensors)
        samples = settings.repeat(
            SHARE,
            lambda: _sample(settings, daemon, subject, trainer, raw),
            rounds=2 * settings.rounds,  # they differ by more than the goal
            least=settings.rounds,
        )
        subject.close()
    raw.close()
    steps = [step for sample in samples for step in sample["saving"]]
    alone = [step for sample in samples for step in sample["beside saving"]]
    cpu = sum(sample["cpu"] for sample in samples) / sum(sample["wall"] for sample in samples)

    def ratio(key):
        return statistics.median(
            statistics.mean(sample[key]) / statistics.mean(sample[f"beside {key}"])
            for sample in samples
        )

    return [
        Goal(
            "P8",
            "a CPU-bound training step while a save persists: how much longer it takes",
            1000 * statistics.mean(steps),
            "ms",
            "the same step without a save",
            1000 * statistics.mean(alone),
            ratio("saving") - 1,
            "≤",
            0.1,
            len(samples),
            f"the daemon takes {cpu:.0%} of one core meanwhile; {len(steps)} steps; beside a raw O_DIRECT "
            f"write of the same bytes, by a process that does nothing else: {ratio('raw') - 1:.0%}",
        )
    ]


def _sample(settings, daemon, subject, trainer, raw):
    def alone():
        end = time.monotonic() + (QUICK_ALONE_SECONDS if settings.quick else ALONE_SECONDS)
        return trainer.steps_until(lambda: time.monotonic() > end)

    first = alone()
    raw.send("write")
    while_raw = trainer.steps_until(raw.has_answered)
    raw.receive()
    second = alone()
    path = settings.path()
    subject.save(settings.state.tensors, path)
    durable = threading.Event()

    def wait():
        subject.wait()
        durable.set()

    waiter = threading.Thread(target=wait)
    cpu, start = daemon.cpu_seconds(), time.monotonic()
    waiter.start()
    saving = trainer.steps_until(durable.is_set)
    waiter.join()
    wall, cpu = time.monotonic() - start, daemon.cpu_seconds() - cpu
    third = alone()
    remove(path)
    return {
        "raw": while_raw,
        "beside raw": first + second,
        "saving": saving,
        "beside saving": second + third,
        "cpu": cpu,
        "wall": wall,
    }
