"""What a person does after a crash: journals that are damaged, too new or gone, and images to save."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess

import ckptd
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from harness import BUILD, CKPTCTL, WAIT_SECONDS, wait_until


def journal_of(daemon):
    """The file that the daemon says is its journal."""
    return type(daemon.state)(daemon.status().journal_file)


def ckptctl(daemon, *arguments) -> subprocess.CompletedProcess:
    """Runs ckptctl against the daemon."""
    return subprocess.run(
        [CKPTCTL, "--address", daemon.address, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )


@pytest.fixture
def killed(make_daemon, tmp_path):
    """A daemon that was killed with two accepted saves, and their objects by name of the save."""
    daemon = make_daemon()
    client = daemon.client(job="job")
    # Larger than what is written before the kill.
    states = [{"x": torch.arange(30_000_000) + i} for i in range(2)]
    held = tmp_path / "held.ckpt"
    client.save({"x": 0}, held).result()
    session = ckptd.client.session_for(daemon.address)
    # A load that is not ended keeps the path, so that both saves stay QUEUED.
    session.call("BeginLoad", pb.BeginLoadRequest(session_id=session.id, path=str(held)), 10)
    saves = [client.save(state, held) for state in states]
    assert [save.state for save in saves] == ["QUEUED", "QUEUED"]
    daemon.journal = journal_of(daemon)
    daemon.kill()
    return daemon, dict(zip([save.name for save in saves], states))


def test_damaged_journal_is_set_aside_and_images_are_exported(killed, tmp_path):
    daemon, states = killed
    daemon.journal.write_bytes(b"no journal" * 10_000)
    for log in daemon.state.glob("*-wal"):
        log.unlink()
    daemon.start()
    assert "set aside" in daemon.log.read_text()
    assert [p.read_bytes()[:10] for p in daemon.state.glob("*.corrupt-1")] == [b"no journal"]
    listed = json.loads(ckptctl(daemon, "list", "-o", "json").stdout)["saves"]
    assert {save["name"]: save["state"] for save in listed} == {name: "FAILED" for name in states}
    first, second = states
    for name in states:
        assert "export" in ckptctl(daemon, "get", name).stdout

    target = tmp_path / "rescued" / "first.ckpt"
    result = ckptctl(daemon, "export", first, target)
    assert result.returncode == 0, result.stderr
    assert torch.equal(torch.load(target)["x"], states[first]["x"])
    ckptd.verify(target)
    again = ckptctl(daemon, "export", first, target)
    assert again.returncode == 1 and "given up" in again.stderr

    # What nobody exports survives one more restart, and goes when somebody says so.
    daemon.stop()
    daemon.start()
    assert ckptctl(daemon, "cancel", second).stdout.endswith("its image is given up\n")
    wait_until(lambda: daemon.status().pool.used_bytes == daemon.status().pool.free_bytes, "memory")
    assert torch.load(tmp_path / "held.ckpt") == {"x": 0}


def test_a_journal_with_a_row_of_no_save_is_damaged(make_daemon):
    daemon = make_daemon()
    journal_file = journal_of(daemon)
    daemon.kill()
    nameless = pb.Save(name="jobs/j/saves/", path="/x").SerializeToString()
    with contextlib.closing(sqlite3.connect(journal_file)) as journal:
        row = (b"n", 1, 1, 1, nameless, b"", b"/x", 0, b"", 0, b"")
        journal.execute("INSERT INTO saves VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        journal.commit()
    daemon.start()
    log = daemon.log.read_text()
    assert "row 1 of saves is none: name 'jobs/j/saves/': must have the form" in log
    assert "It is set aside as" in log


def test_lost_journal_is_like_a_damaged_one(killed, tmp_path):
    daemon, states = killed
    shutil.rmtree(daemon.state)
    daemon.start()
    for name, state in states.items():
        target = tmp_path / name.replace("/", "-")
        assert ckptctl(daemon, "export", name, target).returncode == 0
        assert torch.equal(torch.load(target)["x"], state["x"])


def test_journal_of_a_later_version_is_refused(killed):
    daemon, states = killed
    with sqlite3.connect(daemon.journal) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute("PRAGMA user_version = 1000")
    database.close()
    command = [BUILD / "bin" / "ckptd", "--socket", daemon.socket, "--pool-dir", daemon.pool]
    result = subprocess.run(
        [*command, "--state-dir", daemon.state], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 1
    assert "is of version 1000" in result.stderr.splitlines()[-1]
    # The one that can read it finds everything as it was.
    with sqlite3.connect(daemon.journal) as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    daemon.start()
    for name in states:
        wait_until(
            lambda n=name: daemon.call("GetSave", pb.GetSaveRequest(name=n)).state
            == pb.Save.SUCCEEDED,
            "the save",
        )


def test_after_a_reboot_what_was_lost_is_said(killed, tmp_path):
    daemon, states = killed
    shutil.rmtree(daemon.pool)  # as the tmpfs is after a restart of the machine
    daemon.start()
    for name in states:
        save = daemon.call("GetSave", pb.GetSaveRequest(name=name))
        assert save.state == pb.Save.FAILED
        assert "restart of the machine" in save.error.message
    assert torch.load(tmp_path / "held.ckpt") == {"x": 0}


def test_two_daemons_of_one_user_have_journals_of_their_own(make_daemon, tmp_path):
    one, other = make_daemon(), make_daemon()
    other.stop()
    other.state = one.state
    other.start()
    assert journal_of(one) != journal_of(other)
    for daemon in (one, other):
        daemon.client().save({"x": 1}, tmp_path / "a.ckpt").result()
