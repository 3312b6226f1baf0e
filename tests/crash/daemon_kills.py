"""Kills a daemon under load at random moments, starts it again, and sees what became of it all.

usage: daemon_kills.py KILLS SEED, in the environment of tests/crash/run
"""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Set

from child import Child
from durability import check_all_ended, is_temporary, open_journal, strays_in_pool
from harness import WAIT_SECONDS, Daemon
from ledger import LedgerReader
from pieces import FileDigests

from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb

#: Seconds that a daemon lives at most, after it serves.
LIFE = 0.3
#: What a moment is chosen for, and how often.
MOMENTS = {"under load": 70, "restarting": 20, "idle": 10}
PROCESSES = 2
#: Import of torch, and a call that waits for a daemon to come back.
ANSWER_SECONDS = 120.0
STATES = ("STAGING", "QUEUED", "PERSISTING")


@dataclasses.dataclass
class LoadConfig:
    """What one process of the load does."""

    address: str
    name: str
    folder: str  # for its checkpoints
    common: str  # path to which every process saves
    ledger: str  # is appended to
    seed: int
    transports: List[str]  # one thread for each


class Load(Child):
    """A process of the load: see load_worker.py."""

    def __init__(self, config: LoadConfig, log: Path) -> None:
        super().__init__(Path(__file__).with_name("load_worker.py"), config, log)
        self.reader = LedgerReader(Path(config.ledger))


class Campaign:
    """A daemon that is killed again and again, and its load. Collects what must not be."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder / "checkpoints"
        self.folder.mkdir()
        self.daemon = Daemon(folder, "--staging-budget", "64MiB")
        self.common = str(self.folder / "common.ckpt")
        self.kills: Dict[str, int] = collections.Counter()
        self.events: Dict[str, int] = collections.Counter()
        self.durable = 0
        self.lost: List[str] = []
        self.torn: List[str] = []
        self.stray: List[str] = []
        self._pending: Set[str] = set()  # names of accepted saves that were not seen to be durable
        # By path: the place of each digest among those that were to be saved there, and the place
        # of the one that was there when it was last looked at.
        self._ever: Dict[str, Dict[str, int]] = collections.defaultdict(dict)
        self._seen: Dict[str, int] = collections.Counter()
        self._last: Dict[str, Optional[str]] = {}
        self._digest_of: Dict[str, str] = {}  # by save
        self._digests = FileDigests()
        self._start_seconds = 0.2
        self._log_end = 0
        self._loads = [
            Load(
                LoadConfig(
                    address=self.daemon.address,
                    name=f"load-{number}",
                    folder=str(self.folder),
                    common=self.common,
                    ledger=str(folder / f"load-{number}.ledger"),
                    seed=seed,
                    transports=["shm", "grpc"],
                ),
                folder / f"load-{number}.log",
            )
            for number in range(PROCESSES)
        ]
        for load in self._loads:
            load.hear("ready")

    def close(self) -> None:
        """Ends all of it."""
        for load in self._loads:
            load.close()
        self.daemon.clean_up()

    def kill_one(self) -> None:
        """Lets the daemon live until a moment, kills it, looks at the files, and starts it again.

        It may die once more while it starts. It serves when this is called and when it returns.
        """
        (moment,) = self.random.choices(list(MOMENTS), weights=list(MOMENTS.values()))
        if moment == "idle":
            self._rest()
        else:
            self._live(self.random.uniform(0, LIFE))
        self._kill(self._states())
        while moment == "restarting":
            self.daemon.launch()
            self._live(self.random.uniform(0, self._start_seconds))
            self._kill(["just restarted"] if self._said_that_it_serves() else ["restarting"])
            moment = self.random.choice(["restarting", "enough"])
        start = time.monotonic()
        self.daemon.start()
        self._start_seconds = time.monotonic() - start
        for load in self._loads:
            load.check()
            if moment == "idle":
                load.tell("go")
                load.hear("going")

    def finish(self) -> None:
        """Ends the load and the daemon in peace, and checks all that is left."""
        for load in self._loads:
            load.end()
        self._settle()
        assert self.daemon.stop() == 0, self.daemon.log.read_text()
        self._look()
        with open_journal(self.daemon) as journal:
            known = check_all_ended(journal)
            query = "SELECT name FROM saves WHERE target = ? ORDER BY seq DESC LIMIT 1"
            target = os.path.realpath(self.common).encode()
            newest = journal.execute(query, (target,)).fetchone()[0].decode()
        self._last[self.common] = self._digest_of[newest]
        assert all(save.state != pb.Save.FAILED for save in known.values())
        for path, expected in self._last.items():
            found = self._digests.of(Path(path))
            if found != expected:
                self.lost.append(f"{path}: is {found}, and the last accepted is {expected}")

    def table(self) -> str:
        """What was done, and what came of it."""
        rows = [("killed while", "times")]
        rows += [(row, self.kills[row]) for row in (*STATES, "idle", "restarting")]
        rows += [("just restarted", self.kills["just restarted"]), ("all kills", self.kills["all"])]
        rows += [("saves accepted", self.events["saved"]), ("durable", self.durable)]
        rows += [("removals", self.events["removed"]), ("loads compared", self.events["loaded"])]
        rows += [(what, len(getattr(self, what))) for what in ("lost", "torn", "stray")]
        lines = [f"| {left:<16} | {right:>6} |" for left, right in rows]
        return "\n".join([lines[0], "|---|---:|", *lines[1:]])

    def _live(self, seconds: float) -> None:
        try:
            self.daemon.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"it ended by itself: {self.daemon.log.read_text()}")

    def _states(self) -> List[str]:
        """What the daemon says of its saves at the moment before its death."""
        queue = self.daemon.status().queue
        return [s for s in STATES if getattr(queue, f"{s.lower()}_count")] or ["idle"]

    def _kill(self, states: List[str]) -> None:
        assert self.daemon.process.poll() is None, self.daemon.log.read_text()
        self.daemon.kill()
        assert self.daemon.process.returncode == -signal.SIGKILL
        self._log_end = os.path.getsize(self.daemon.log)
        for row in (*states, "all"):
            self.kills[row] += 1
        self._look()

    def _said_that_it_serves(self) -> bool:
        with open(self.daemon.log, "rb") as log:
            log.seek(self._log_end)
            return b" serves unix:" in log.read()

    def _rest(self) -> None:
        for load in self._loads:
            load.tell("rest")
        for load in self._loads:
            load.hear("resting")
        self._settle()

    def _settle(self) -> None:
        """Sees, while nobody asks for anything, that all that was accepted becomes durable."""
        self._take_events()
        with rpc.open_channel(self.daemon.address) as channel:
            stub = rpc.Stub(channel)
            stub.Flush(pb.FlushRequest(parent="jobs/-"), timeout=ANSWER_SECONDS)
            for name in self._pending:
                save = stub.GetSave(pb.GetSaveRequest(name=name), timeout=WAIT_SECONDS)
                if save.state == pb.Save.SUCCEEDED:
                    self.durable += 1
                else:
                    self.lost.append(str(save))
        self._pending.clear()
        self.stray += strays_in_pool(self.daemon)
        self.stray += filter(is_temporary, os.listdir(self.folder))

    def _take_events(self) -> None:
        for event in (event for load in self._loads for event in load.reader.events()):
            self.events[event["event"]] += 1
            path = event["path"]
            if event["event"] == "save":
                self._ever[path][event["digest"]] = len(self._ever[path])
            elif event["event"] == "saved":
                self._pending.add(event["name"])
                self._digest_of[event["name"]] = event["digest"]
                self._last[path] = event["digest"]
            elif event["event"] == "removed":
                self._last[path] = None

    def _look(self) -> None:
        """Sees, while there is no daemon, that each file is whole, and is not older than it was."""
        self._take_events()
        for name in os.listdir(self.folder):
            path = str(self.folder / name)
            if path not in self._ever:
                if not is_temporary(name):
                    self.stray.append(path)
                continue
            try:
                found = self._digests.of(Path(path))
            except Exception as error:  # whatever torch.load makes of it
                self.torn.append(f"{path}: {error}")
                continue
            index = self._ever[path].get(found)
            if index is None:
                self.torn.append(f"{path}: nobody saved this")
            elif path != self.common:  # of which nobody knows the order yet
                if index < self._seen[path]:
                    self.lost.append(f"{path}: was {self._seen[path]}, and is {index} again")
                self._seen[path] = index


def run(kills: int, seed: int, folder: Path) -> Campaign:
    """A whole campaign. Whoever calls looks at what it has collected, and closes it."""
    campaign = Campaign(folder, seed)
    try:
        while campaign.kills["all"] < kills:
            campaign.kill_one()
        campaign.finish()
    finally:
        campaign.close()
    return campaign


def main() -> int:
    kills, seed = int(sys.argv[1]), int(sys.argv[2])
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ckptd-kills-") as folder:
        campaign = run(kills, seed, Path(folder))
    print(campaign.table())
    print(f"seed {seed}, {time.monotonic() - start:.0f} s")
    wrong = campaign.lost + campaign.torn + campaign.stray
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
