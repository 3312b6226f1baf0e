"""What the soak measures of processes and files, and what it takes for flat.

A phase gives one sample for each batch of work, always taken at rest: everything accepted has
ended, and of all clients only those that stay are there. The first quarter of the samples is
warm-up. Of the rest, the median of the last third may be above that of the first third by the
quantity's slack, and no sample may be above its limit where it has one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import statistics
from pathlib import Path
from typing import Dict, Iterator, List, Optional

from durability import open_journal
from harness import Daemon

from ckptd.v1 import checkpoint_pb2 as pb

MIB = 1 << 20
#: Of SaveQueue::Options::history.
HISTORY = 10_000
BUDGET = 256 * MIB

Sample = Dict[str, int]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One thing that must be flat, by its name in a Sample."""

    name: str
    slack: int
    limit: Optional[int] = None
    is_bytes: bool = False

    def show(self, value: float) -> str:
        """As it is in a table."""
        return f"{value / MIB:.1f}" if self.is_bytes else f"{value:.0f}"


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one quantity in one phase."""

    phase: str
    quantity: Quantity
    first: float
    median: float
    last: float
    bound: float
    most: float

    @property
    def flat(self) -> bool:
        """Whether it stayed within its bounds."""
        limit = self.quantity.limit
        return self.last <= self.bound and (limit is None or self.most <= limit)

    def __str__(self) -> str:
        show = self.quantity.show
        values = " / ".join(show(value) for value in (self.first, self.median, self.last))
        verdict = "" if self.flat else f" grows, to {show(self.most)}"
        return f"{values} ≤ {show(self.bound)}{verdict}"


def table(rows: List[Row]) -> str:
    """A line for each quantity, with the medians of the first third, of all and of the last third
    of each phase, and what the last may be."""
    phases = list(dict.fromkeys(row.phase for row in rows))
    cells = {(row.quantity.name, row.phase): str(row) for row in rows}
    lines = ["| | " + " | ".join(phases) + " |", "|---|" + "---|" * len(phases)]
    for quantity in quantities(large=False):
        unit = ", MiB" if quantity.is_bytes else ""
        of_phases = " | ".join(cells[quantity.name, phase] for phase in phases)
        lines.append(f"| {quantity.name}{unit} | {of_phases} |")
    return "\n".join(lines)


def quantities(large: bool) -> List[Quantity]:
    """What must be flat, and how flat, where states are small or of 50 MB.

    Memory: what malloc keeps differs from rest to rest; where states are large, by the chunks of
    some streams in the daemon, and by a state in a client. Pool: by an image, where one save more
    was under way at once. Descriptors and threads: by those of images, and of gRPC, which ends idle
    threads late.
    """
    own, state, image = 2 * MIB, 2 * MIB, 2 * MIB
    if large:
        own, state, image = 16 * MIB, 64 * MIB, 64 * MIB

    def memory(process: str, slack: int) -> List[Quantity]:
        return [
            Quantity(f"{process} RssAnon", slack, is_bytes=True),
            Quantity(f"{process} fds", 8),
            Quantity(f"{process} threads", 8),
        ]

    return [
        Quantity("daemon VmRSS", own + image, is_bytes=True),
        Quantity("daemon RssShmem", image, BUDGET + MIB, is_bytes=True),
        *memory("daemon", own),
        Quantity("pool used", image, BUDGET, is_bytes=True),
        Quantity("pool files", image, BUDGET + MIB, is_bytes=True),
        Quantity("journal file", MIB, is_bytes=True),
        Quantity("journal log", 4 * MIB, 16 * MIB, is_bytes=True),
        Quantity("saves known", 0, HISTORY),
        Quantity("state files", 0),
        Quantity("crashes file", 0, 0, is_bytes=True),
        *memory("stay", state),
        *memory("visit", state),
        *memory("fork", state),
    ]


def measure_process(name: str, pid: int) -> Sample:
    """Memory, descriptors and threads of a process."""
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.split()
    sample = {
        f"{name} {key}": int(fields[key][0]) * 1024 for key in ("VmRSS", "RssAnon", "RssShmem")
    }
    sample[f"{name} threads"] = int(fields["Threads"][0])
    sample[f"{name} fds"] = len(os.listdir(f"/proc/{pid}/fd"))
    return sample


def measure_daemon(daemon: Daemon) -> Sample:
    """The process, its pool and its journal."""
    sample = measure_process("daemon", daemon.process.pid)
    sample["pool used"] = daemon.status().pool.used_bytes
    sample["pool files"] = sum(_allocated(file) for file in _files_below(daemon.pool))
    sample["saves known"] = _known_saves(daemon)
    state = list(_files_below(daemon.state))
    sample["state files"] = len(state)
    for name, end in (("file", ".db"), ("log", ".db-wal"), ("crashes", ".crashes")):
        size = sum(file.stat().st_size for file in state if file.name.endswith(end))
        sample["crashes file" if name == "crashes" else f"journal {name}"] = size
    return sample


def judge(phase: str, samples: List[Sample], large: bool) -> List[Row]:
    """Compares the samples of a phase, in their order."""
    warm = samples[max(1, len(samples) // 4) :]
    third = max(1, len(warm) // 3)
    rows = []
    for quantity in quantities(large):
        values = [sample[quantity.name] for sample in warm]
        first = statistics.median(values[:third])
        rows.append(
            Row(
                phase,
                quantity,
                first=first,
                median=statistics.median(values),
                last=statistics.median(values[-third:]),
                bound=first + quantity.slack,
                most=max(values),
            )
        )
    return rows


def fill_history(daemon: Daemon) -> None:
    """Fills the history in the journal of a daemon that does not run.

    Its ended saves are copied under other names until there are as many as a daemon keeps: what
    grows until then may do so, and there is nothing to be seen of a leak beside it.
    """
    (file,) = daemon.state.glob("journal-*.db")
    with contextlib.closing(sqlite3.connect(file)) as journal, journal:
        journal.execute("PRAGMA locking_mode = EXCLUSIVE")  # as the daemon opens it
        columns = [column[1] for column in journal.execute("PRAGMA table_info(saves)")]
        ended = journal.execute("SELECT * FROM saves WHERE ended != 0").fetchall()
        query = "SELECT max(max(number), max(seq), max(ended)) FROM saves"
        (place,) = journal.execute(query).fetchone()
        marks = ", ".join("?" * len(columns))
        for index in range(HISTORY - len(ended)):
            row = dict(zip(columns, ended[index % len(ended)]))
            save = pb.Save.FromString(row["save"])
            save.name = f"{save.name.rpartition('/')[0]}/filled-{index:05}"
            row.update(name=save.name.encode(), save=save.SerializeToString())
            row.update(dict.fromkeys(("number", "seq", "ended"), place + 1 + index))
            journal.execute(f"INSERT INTO saves VALUES ({marks})", [row[c] for c in columns])


def count_rows(daemon: Daemon) -> Dict[str, int]:
    """Rows of ended saves, and of removals that have failed, in the journal of a dead daemon."""
    with open_journal(daemon) as journal:
        counts = journal.execute(
            "SELECT (SELECT count(*) FROM saves WHERE ended != 0),"
            " (SELECT count(*) FROM removes WHERE error IS NOT NULL)"
        )
        return dict(zip(("saves", "removes"), counts.fetchone()))


def _known_saves(daemon: Daemon) -> int:
    count, request = 0, pb.ListSavesRequest(page_size=1000)
    while True:
        page = daemon.call("ListSaves", request)
        count += len(page.saves)
        if not page.next_page_token:
            return count
        request.page_token = page.next_page_token


def _files_below(folder: Path) -> Iterator[Path]:
    for found, _, names in os.walk(folder):
        for name in names:
            yield Path(found, name)


def _allocated(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512
    except FileNotFoundError:  # an image is parked just now
        return 0
