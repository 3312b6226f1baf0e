"""Saves for a long time, kills the daemon in between, and sees that nothing grows.

usage: soak.py SAVES LARGE KILLS SEED, in the environment of tests/soak/run

Four phases, with the same clients throughout: SAVES small saves, then LARGE ones of 50 MB; of each,
a part while the daemon is killed KILLS times under load, the rest in one life of the daemon, so
that what a restart would hide can be seen. That is long for the small ones: what a daemon loses, it
first takes from what was free once it had read its journal. Clients that come and go save, too.

The history of ended saves is full from the beginning (measure.fill_history), as it is in a daemon
that has run for long.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

import torch
from child import Child
from durability import check_all_ended, is_temporary, open_journal, strays_in_pool
from harness import Daemon, wait_until
from measure import (
    BUDGET,
    HISTORY,
    Row,
    Sample,
    count_rows,
    fill_history,
    judge,
    measure_daemon,
    measure_process,
    table,
)
from soak_worker import Order, WorkerConfig, check_whole

from ckptd.errors import reason_of
from ckptd.v1 import checkpoint_pb2 as pb

#: Elements of a state, of 4 bytes.
_SMALL, _LARGE = 32_000, 12_500_000
_MIN_BATCH = 3
#: Clients that come and go, for each batch.
_VISITS = {"visit": 4, "fork": 2}
_REST_SECONDS = 120.0
#: Of SaveQueue::Options::max_workers: each may have written an end down, and not yet forgotten the
#: oldest save for it.
_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a soak is."""

    saves: int
    large: int
    kills: int
    batches: int = 20  # of a phase without kills, at most


class Soak:
    """A daemon and its load."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.done: Dict[str, int] = collections.Counter()
        self.rows: List[Row] = []
        self._folder = folder / "checkpoints"
        self._folder.mkdir()
        self._daemon = Daemon(folder, "--staging-budget", str(BUDGET))
        self._workers = {
            role: Child(
                Path(__file__).with_name("soak_worker.py"),
                WorkerConfig(role, self._daemon.address, str(self._folder), seed),
                folder / f"{role}.log",
            )
            for role in ("stay", "visit", "fork")
        }
        for worker in self._workers.values():
            worker.hear("ready")
        self._batch(60, _SMALL, kill=False)
        self._rest()
        assert self._daemon.stop() == 0, self._daemon.log.read_text()
        fill_history(self._daemon)
        self._daemon.start()

    def close(self) -> None:
        """Ends all of it."""
        for worker in self._workers.values():
            worker.close()
        self._daemon.clean_up()

    def run_phase(self, name: str, batches: List[int], elements: int, kill: bool) -> None:
        """Makes the saves of each batch, with a sample after each, and judges the samples."""
        samples = []
        for saves in batches:
            self._batch(saves, elements, kill)
            self._rest()
            samples.append(self._measure())
        self.rows += judge(name, samples, elements == _LARGE)

    def finish(self) -> None:
        """Ends the load and the daemon in peace, and checks what is left."""
        for worker in self._workers.values():
            worker.end()
        self._rest(sessions=0)
        assert self._daemon.stop() == 0, self._daemon.log.read_text()
        self._check_files()
        with open_journal(self._daemon) as journal:
            known = check_all_ended(journal)
        assert len(known) == HISTORY
        for save in known.values():
            assert _ended_as_it_may(save), save
        for role in ("stay", "visit"):
            ended = self.done[f"{role} durable"] + self.done[f"{role} superseded"]
            assert ended == self.done[f"{role} saved"] > 0

    def _batch(self, saves: int, elements: int, kill: bool) -> None:
        spread = elements == _SMALL
        for role, worker in self._workers.items():
            order = Order(_VISITS.get(role, saves), elements, spread)
            worker.tell(json.dumps(dataclasses.asdict(order)))
        self._workers["stay"].hear("half")
        if kill:
            self._kill()
        for role, worker in self._workers.items():
            if role != "stay":
                worker.hear("half")
        for role, worker in self._workers.items():
            done: Dict[str, int] = collections.Counter()
            for part in json.loads(worker.listen()):
                done.update(part)
            for what, count in done.items():
                self.done[f"{role} {what}"] = count

    def _kill(self) -> None:
        assert self._daemon.process.poll() is None, self._daemon.log.read_text()
        self._daemon.kill()
        assert self._daemon.process.returncode == -signal.SIGKILL
        rows = count_rows(self._daemon)
        assert rows["saves"] <= HISTORY + _WORKERS, rows
        assert rows["removes"] == 0, rows
        self.done["kills"] += 1
        self._daemon.start()

    def _rest(self, sessions: int = 1) -> None:
        """Waits until all that was accepted has ended, and only the clients that stay are there."""

        def rests() -> bool:
            status = self._daemon.status()
            return status.session_count == sessions and status.queue.staging_count == 0

        wait_until(rests, "the clients that were there to be gone", _REST_SECONDS)
        self._daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
        assert strays_in_pool(self._daemon) == []
        self._check_files()

    def _check_files(self) -> None:
        for name in os.listdir(self._folder):
            assert not is_temporary(name), f"{name} is left beside the checkpoints"
            check_whole(torch.load(self._folder / name))

    def _measure(self) -> Sample:
        sample = measure_daemon(self._daemon)
        for role, worker in self._workers.items():
            sample.update(measure_process(role, worker.process.pid))
        return sample


def _ended_as_it_may(save: pb.Save) -> bool:
    """Whether it is durable, or gave way where its client wants that, or its client died."""
    if save.state == pb.Save.SUPERSEDED:
        return save.name.startswith("jobs/stay-new/")
    if save.state == pb.Save.CANCELLED:
        return save.name.startswith("jobs/fork-killed/") and reason_of(save.error) == "CLIENT_DIED"
    return save.state == pb.Save.SUCCEEDED


def split(total: int, batches: int) -> List[int]:
    """`total` in so many batches, or in fewer where they would be too small."""
    count = max(1, min(batches, total // _MIN_BATCH))
    share, rest = divmod(total, count)
    return [share + (index < rest) for index in range(count)]


def run(length: Length, seed: int, folder: Path) -> Soak:
    """A whole soak. Raises AssertionError where a save was lost; the caller looks at the rows."""
    torch.set_num_threads(1)
    soak = Soak(folder, seed)
    try:
        for size, elements, saves, killed in (
            ("small", _SMALL, length.saves, length.saves // 5),
            ("large", _LARGE, length.large, length.large // 2),
        ):
            if saves == 0:
                continue
            if length.kills == 0 or killed < _MIN_BATCH:
                killed = 0
            else:
                soak.run_phase(
                    f"{size}, killed", split(killed, length.kills), elements, kill=True
                )
            soak.run_phase(
                f"{size}, one life",
                split(saves - killed, length.batches),
                elements,
                kill=False,
            )
        soak.finish()
    finally:
        soak.close()
    return soak


def main() -> int:
    saves, large, kills, seed = map(int, sys.argv[1:])
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ckptd-soak-") as folder:
        soak = run(Length(saves, large, kills), seed, Path(folder))
    print(table(soak.rows))
    print(", ".join(f"{what}: {count}" for what, count in sorted(soak.done.items())))
    print(f"seed {seed}, {time.monotonic() - start:.0f} s")
    return 0 if all(row.flat for row in soak.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
