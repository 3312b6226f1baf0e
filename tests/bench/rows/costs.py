"""P9: what a save costs beside time, one save at a time."""

import os
import time

from daemon import Daemon, Peak, private_bytes
from settings import remove
from subjects import Ckptd

from rows.goal import Goal

SHARE = 0.03
PIECE, TIMES = 16 << 20, 3


def measure(settings):
    state = settings.state
    with Daemon(settings.daemon, settings.budget) as daemon:
        subject = Ckptd(daemon.address, reserve=state.tensors)
        saves = 0

        def save():
            nonlocal saves
            path = settings.path()
            subject.save(state.tensors, path)
            state.step()
            subject.wait()
            remove(path)
            saves += 1

        alone = private_bytes(os.getpid())
        save()
        before, saves = daemon.cpu_seconds(), 0
        with Peak(daemon.own_bytes) as own, Peak(daemon.pool_bytes) as pool:
            with Peak(lambda: private_bytes(os.getpid())) as trainer:
                settings.repeat(SHARE, save)
        cpu = daemon.cpu_seconds() - before
        subject.close()
    gigabytes = saves * state.nbytes / 1e9
    write, checksum = _least_cpu(settings)
    extra = pool.value + own.value + max(0, trainer.value - alone)
    return [
        Goal(
            "P9",
            "the daemon's CPU for each GB persisted",
            cpu / gigabytes,
            "core-s",
            "",
            None,
            cpu / gigabytes,
            "≤",
            0.15,
            saves,
            f"a raw O_DIRECT write alone takes {write:.3f}, checksums by ISA-L alone {checksum:.3f}",
        ),
        Goal(
            "P9",
            "the daemon's resident memory beyond staged bytes",
            own.value / 2**20,
            "MiB",
            "",
            None,
            own.value / 2**20,
            "≤",
            64,
            saves,
        ),
        Goal(
            "P9",
            "all memory of trainer and daemon above the trainer's own",
            extra / 2**20,
            "MiB",
            "the state",
            state.nbytes / 2**20,
            extra / state.nbytes,
            "≤",
            1.1,
            saves,
            f"staging {pool.value / 2**20:.0f} MiB, daemon {own.value / 2**20:.0f} MiB, trainer "
            f"{max(0, trainer.value - alone) / 2**20:.0f} MiB",
        ),
    ]


def _least_cpu(settings):
    """The processor seconds for each GB of what a save cannot do without: write, and checksum."""
    from ckptd.checksum import crc32

    def checksum():
        view = memoryview(settings.scratch.memory)
        for start in range(0, len(view), PIECE):
            crc32(view[start : start + PIECE])

    taken = []
    for part in (settings.limits.direct_write, checksum):
        before = time.process_time()
        for _ in range(TIMES):
            part()
        taken.append((time.process_time() - before) / (TIMES * settings.size / 1e9))
    return taken
