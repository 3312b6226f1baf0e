"""P3: what a save costs a Lightning training whose copy runs behind forward and backward.

Blocked is what save_checkpoint takes, and what lies between the start of a step and its forward,
and between the end of its backward and the optimizer's own work, as far as that takes longer than
in a step without a save. Lightning calls optimizer.step before forward: a hook on it waits there.
"""

import inspect
import statistics
import time
import warnings

import torch
from daemon import Daemon
from settings import remove

from rows.goal import Goal

EVERY = 4
WIDTH, BATCH = 1024, 256


def measure(settings):
    import ckptd
    from ckptd.lightning import SidecarCheckpointIO

    if "overlap" not in inspect.signature(SidecarCheckpointIO).parameters:
        return []
    with Daemon(settings.daemon, settings.budget) as daemon:
        client = ckptd.Client(address=daemon.address, on_unavailable="raise")
        client.reserve(settings.state.tensors, images=1, wait=True)
        clock = _train(settings, SidecarCheckpointIO(overlap=True, client=client))
        client.close()
    return [_goal(settings, clock)]


class Clock:
    """Of one training: seconds by step."""

    def __init__(self):
        self.saves = []  # of save_checkpoint
        self.waits = {True: [], False: []}  # in a step after a save, and in others
        self.steps = []
        self.saving = False
        self.mark = self.wait = 0.0

    def of_saves(self, plugin):
        save = plugin.save_checkpoint

        def timed_save(*arguments, **options):
            start = time.perf_counter()
            save(*arguments, **options)
            self.saves.append(time.perf_counter() - start)
            self.saving = True

        plugin.save_checkpoint = timed_save

    def pause(self):
        """Nothing of the trainer's runs from here to `resume`."""
        self.mark = time.perf_counter()

    def resume(self):
        self.wait += time.perf_counter() - self.mark

    def end_waiting(self):
        """The optimizer goes to work."""
        self.resume()
        self.waits[self.saving].append(self.wait)
        self.saving, self.wait = False, 0.0


def _train(settings, plugin):
    import pytorch_lightning as pl

    clock = Clock()

    class Module(pl.LightningModule):
        """The state as parameters that get no gradients, beside a few that are trained: the
        optimizer has them all, as their copy demands, but steps soon."""

        def __init__(self):
            super().__init__()
            self.state = torch.nn.ParameterList(
                torch.nn.Parameter(tensor) for tensor in settings.state.tensors.values()
            )
            self.net = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(8)])

        def on_train_batch_start(self, *_):
            clock.pause()

        def training_step(self, batch, _):
            clock.resume()
            return self.net(batch).square().mean()

        def on_after_backward(self):
            clock.pause()

        def on_before_optimizer_step(self, _):
            clock.end_waiting()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    class Saver(pl.Callback):
        """Saves every few steps, while nothing of an earlier save is left."""

        def __init__(self):
            self.paths = []
            self.start = 0.0

        def on_train_start(self, trainer, module):
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            clock.steps.append(time.perf_counter() - self.start)
            if index % EVERY == EVERY - 1:
                plugin.client.flush()
                self.paths.append(settings.path("overlap.ckpt"))
                trainer.save_checkpoint(self.paths[-1], weights_only=True)
            self.start = time.perf_counter()

    saver = Saver()
    clock.of_saves(plugin)
    warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
    trainer = pl.Trainer(
        plugins=[plugin],
        callbacks=[saver],
        max_steps=EVERY * (settings.rounds + 1),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [torch.randn(BATCH, WIDTH)] * (EVERY * (settings.rounds + 2))
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    for path in saver.paths:
        remove(path)
    return clock


def _goal(settings, clock):
    memcpy = settings.limits.fastest_memcpy(list(settings.state.tensors.values()))
    plain = statistics.median(clock.waits[False])
    waits = [max(0, wait - plain) for wait in clock.waits[True]]
    blocked = [wait + save for wait, save in zip(waits, clock.saves)]
    figure = statistics.median(blocked)
    return Goal(
        "P3",
        "overlap mode: save, and the wait before the optimizer's step",
        figure,
        "s",
        "the faster of a 1- and a 2-thread warm memcpy into shared memory",
        memcpy,
        figure / memcpy,
        "≤",
        0.1,
        len(blocked),
        f"save {1000 * statistics.median(clock.saves):.1f} ms, wait "
        f"{1000 * statistics.median(waits):.1f} ms; a step takes "
        f"{1000 * statistics.median(clock.steps):.0f} ms",
    )
