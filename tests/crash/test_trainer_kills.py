"""Lightning trainers are killed while they save. What was accepted is not lost; no file is torn.

CKPTD_TRAINER_KILLS   how many to kill; 50 if unset
CKPTD_SEED            of the moments of their deaths; fixed if unset
"""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from pathlib import Path
from typing import Dict, List

import pytest
from harness import Daemon, wait_until
from lineage import Lineage
from trainers import Config, Killer, Moment, SaveWatch, Zygote

from ckptd.errors import reason_of
from ckptd.v1 import checkpoint_pb2 as pb

KILLS = int(os.environ.get("CKPTD_TRAINER_KILLS", "50"))
SEED = int(os.environ.get("CKPTD_SEED", "20261124"))
#: The least number of deaths of each kind: with fewer the run has proven nothing.
LEAST = {"in the copy, shm": 2, "in the copy, grpc": 2, "saves pending": 5, "before any save": 1}
#: Trainers that may run until there are enough, for each that is to be killed.
PATIENCE = 4
STEPS = 4
SMALL, LARGE = 600, 2900  # 3 MB and 67 MB of state


class Campaign:
    """A daemon and its trainers, one after the other."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.random = random.Random(SEED)
        self.daemon = daemon
        self.folder = folder
        self.watch = SaveWatch(daemon.address)
        self.zygote = Zygote()
        self.lineages = [
            Lineage(f"{size}-{transport}", folder, width, transport)
            for size, width in (("small", SMALL), ("large", LARGE))
            for transport in ("shm", "grpc")
        ]
        self.deaths: Dict[str, int] = collections.Counter()
        self.seconds: Dict[str, float] = {}
        self.rounds = 0

    def close(self) -> None:
        """Ends all but the daemon."""
        self.zygote.close()
        self.watch.close()

    def run_one(self, lineage: Lineage, moment: Moment | None = None) -> int:
        """Has a trainer live to its moment, if any, and checks all; returns its exit code."""
        self.rounds += 1
        config = self._config(lineage, f"round-{self.rounds}")
        start = time.monotonic()
        pid = self.zygote.start(config)
        killer = None if moment is None else Killer(pid, moment)
        self.watch.tell(config.job, killer)
        self.zygote.wait()
        self.seconds.setdefault(lineage.name, time.monotonic() - start)
        self.watch.tell(config.job, None)
        if killer is not None:
            killer.close()
        code = self.zygote.reap()
        assert code in (0, -signal.SIGKILL), lineage.log.read_text(encoding="utf-8")
        self._settle(config, lineage)
        if code != 0:
            self._classify(config, killer.killed_at_ns)
        return code

    def uninterrupted(self, lineage: Lineage) -> None:
        """Trains as far without a checkpoint; the lineage sees that the weights are the same."""
        config = self._config(lineage, f"{lineage.name}-whole")
        config.save, config.max_steps = False, lineage.last_step
        self.zygote.start(config)
        assert self.zygote.reap() == 0, lineage.log.read_text(encoding="utf-8")
        lineage.note_states(Path(config.ledger))

    def moment(self, lineage: Lineage) -> Moment:
        """A moment drawn over the whole of a run, or near to one of the events of a save."""
        if self.random.random() < 0.4:
            return Moment(self.random.uniform(0, self.seconds[lineage.name]))
        states = (pb.Save.STAGING, pb.Save.QUEUED, pb.Save.PERSISTING)
        delay = self.random.choice((0.0, self.random.uniform(0, 0.01)))
        count = self.random.randint(1, 2 * STEPS)
        return Moment(delay, self.random.choice(states), count)

    def enough(self) -> bool:
        """Whether there were enough deaths, and enough of each kind."""
        kinds = all(self.deaths[kind] >= least for kind, least in LEAST.items())
        return kinds and self.deaths["all"] >= KILLS

    def _config(self, lineage: Lineage, job: str) -> Config:
        return Config(
            address=self.daemon.address,
            job=job,
            folder=str(lineage.folder),
            ledger=str(self.folder / f"{job}.ledger"),
            log=str(lineage.log),
            width=lineage.width,
            transport=lineage.transport,
            max_steps=lineage.last_step + STEPS,
        )

    def _settle(self, config: Config, lineage: Lineage) -> None:
        """Checks the folder while saves are pending and after them, and that nothing stays."""
        ledger = Path(config.ledger)
        lineage.note_states(ledger)
        lineage.look()
        wait_until(lambda: self.daemon.status().session_count == 0, "the session to end")
        self.daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
        lineage.replay(ledger, self._saves(config.job))
        lineage.check()
        wait_until(self._pool_is_free, f"the pool to be free: {self.daemon.status()}")

    def _classify(self, config: Config, killed_at_ns: int) -> None:
        saves = self._saves(config.job)
        pending = died = False
        for save in saves:
            assert save.state in (pb.Save.SUCCEEDED, pb.Save.CANCELLED), save
            if save.state == pb.Save.SUCCEEDED:
                accepted, ended = save.commit_time.ToNanoseconds(), save.end_time.ToNanoseconds()
                pending |= accepted < killed_at_ns < ended
            else:
                assert reason_of(save.error) in ("CLIENT_DIED", "ABORTED"), save
                died |= reason_of(save.error) == "CLIENT_DIED"
        self.deaths["all"] += 1
        self.deaths[f"in the copy, {config.transport}"] += died
        self.deaths["saves pending"] += pending
        self.deaths["before any save"] += not saves
        self.deaths["between saves"] += bool(saves) and not died and not pending

    def _saves(self, job: str) -> List[pb.Save]:
        request = pb.ListSavesRequest(parent=f"jobs/{job}", page_size=1000)
        return list(self.daemon.call("ListSaves", request).saves)

    def _pool_is_free(self) -> bool:
        status = self.daemon.status()
        leased = [name for name in os.listdir(self.daemon.pool) if name.startswith("image-")]
        pool = status.pool
        assert pool.used_bytes <= pool.budget_bytes, status
        return not leased and pool.used_bytes == pool.free_bytes


@pytest.fixture
def campaign(make_daemon, tmp_path):
    campaign = Campaign(make_daemon("--staging-budget", "320MiB"), tmp_path)
    yield campaign
    campaign.close()


def test_killed_trainers_lose_nothing_and_tear_nothing(campaign):
    print(f"CKPTD_SEED={SEED}")
    for lineage in campaign.lineages:
        assert campaign.run_one(lineage) == 0
    while not campaign.enough():
        assert campaign.rounds < PATIENCE * KILLS, campaign.deaths
        for number in range(4):
            large = number == 0
            lineage = campaign.lineages[2 * large + campaign.random.randint(0, 1)]
            campaign.run_one(lineage, campaign.moment(lineage))
    print(dict(campaign.deaths))
    # The last trainer of each goes on from last.ckpt and ends as if none had been killed.
    for lineage in campaign.lineages:
        assert campaign.run_one(lineage) == 0
        campaign.uninterrupted(lineage)
