"""What must hold of a daemon's files after its death, and after it has gone on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional

from harness import Daemon
from pieces import FileDigests

from ckptd.v1 import checkpoint_pb2 as pb

_TEMPORARY = re.compile(r"\.ckptd-[0-9a-f]{16}(-[0-9a-f]{8}){0,2}")


def is_temporary(name: str) -> bool:
    """Whether a file of this name beside a target is one of the daemon's own."""
    return _TEMPORARY.fullmatch(name) is not None


def strays_in_pool(daemon: Daemon) -> List[str]:
    """Images and notes in the pool's folder, but for images that wait for their next save."""
    return [
        str(Path(folder, name).relative_to(daemon.pool))
        for folder, _, names in os.walk(daemon.pool)
        for name in names
        if folder != str(daemon.pool / ".free")
    ]


@contextlib.contextmanager
def open_journal(daemon: Daemon) -> Iterator[sqlite3.Connection]:
    """The journal of a daemon that does not run, as the next one will find it.

    A copy, with the log that SQLite keeps beside it: whoever opens a database mends it.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in daemon.state.glob("journal-*.db*"):
            shutil.copy(file, folder)
        (name,) = Path(folder).glob("journal-*.db")
        with contextlib.closing(sqlite3.connect(name)) as journal:
            yield journal


def check_journal(journal: sqlite3.Connection) -> None:
    """Checks that the file is sound, and that no two rows are the same save or in one place."""
    assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for column in ("name", "number", "nullif(seq, 0)", "nullif(ended, 0)"):
        counts = journal.execute(f"SELECT count({column}), count(DISTINCT {column}) FROM saves")
        all_of_them, different = counts.fetchone()
        assert all_of_them == different, f"{column}: {all_of_them} rows, {different} values"


def check_all_ended(journal: sqlite3.Connection) -> Dict[str, pb.Save]:
    """Checks that nothing in a sound journal is pending; returns its saves by name."""
    check_journal(journal)
    assert journal.execute("SELECT name FROM saves WHERE ended = 0").fetchall() == []
    assert journal.execute("SELECT path FROM removes").fetchall() == []
    images = journal.execute("SELECT image FROM saves WHERE length(image) > 0").fetchall()
    assert images == []
    return {
        name.decode(): pb.Save.FromString(save)
        for name, save in journal.execute("SELECT name, save FROM saves")
    }


def check_end(
    daemon: Daemon, folder: Path, expected: Dict[str, Optional[str]], accepted: Iterable[str]
) -> None:
    """Waits until nothing is pending, stops the daemon, and checks all that it leaves.

    expected: what each file of `folder` is: its digest, by name; None: there is none.
    accepted: names of the saves that must be durable.
    """
    daemon.call("Flush", pb.FlushRequest(parent="jobs/-"))
    accepted = list(accepted)
    for name in accepted:
        save = daemon.call("GetSave", pb.GetSaveRequest(name=name))
        assert save.state == pb.Save.SUCCEEDED, save
    assert strays_in_pool(daemon) == []
    check_files(folder, expected)
    assert daemon.stop() == 0, daemon.log.read_text()
    check_files(folder, expected)
    with open_journal(daemon) as journal:
        known = check_all_ended(journal)
    for name in accepted:
        assert known[name].state == pb.Save.SUCCEEDED, known[name]
    left = [name for _, _, names in os.walk(daemon.pool) for name in names]
    assert left == [], "a daemon that has ended keeps nothing but accepted images"


def check_files(folder: Path, expected: Dict[str, Optional[str]]) -> None:
    """Checks that `folder` holds just the files that are expected, bit for bit."""
    there = {name: digest for name, digest in expected.items() if digest is not None}
    assert sorted(os.listdir(folder)) == sorted(there)
    digests = FileDigests()
    assert {name: digests.of(folder / name) for name in there} == there
