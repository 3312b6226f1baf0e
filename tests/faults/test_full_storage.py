"""Storage that is full or read-only for a while: the target's, and that of the journal."""

from __future__ import annotations

import os
import re

import ckptd
import pytest
import torch
from ckptd.errors import reason_of
from ckptd.v1 import checkpoint_pb2 as pb
from harness import wait_until
from mounts import needs_root, remount, tmpfs

pytestmark = needs_root

STATE = {"x": torch.arange(1_000_000)}  # 8 MB


def fill(folder):
    """Leaves no room in `folder`; returns the file to remove."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            try:
                while filler.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    return path


def get(daemon, save) -> pb.Save:
    return daemon.call("GetSave", pb.GetSaveRequest(name=save.name))


def waits_with(daemon, save, reason):
    """Waits until an attempt has failed with `reason`; returns the save as it is then."""

    def failed_once():
        now = get(daemon, save)
        return now if now.HasField("error") else None

    now = wait_until(failed_once, "an attempt to fail")
    assert reason_of(now.error) == reason
    assert now.state in (pb.Save.QUEUED, pb.Save.PERSISTING)
    return now


def ended(daemon, save) -> pb.Save:
    return wait_until(
        lambda: now if (now := get(daemon, save)).HasField("end_time") else None, "the save to end"
    )


@pytest.fixture
def folder(tmp_path):
    """A small file system of its own."""
    with tmpfs(tmp_path / "mount", "size=12m") as folder:
        yield folder


class TestFullTarget:
    def test_waits_for_space(self, make_daemon, folder):
        daemon = make_daemon("--retry-timeout", "60s")
        client = daemon.client()
        filler = fill(folder)
        save = client.save(STATE, folder / "a.ckpt")
        message = waits_with(daemon, save, "STORAGE_FULL").error.message
        assert re.fullmatch(
            f"checkpoint {folder}/a.ckpt: cannot .*: No space left on device; free space there, .*",
            message,
        )
        assert os.listdir(folder) == ["filler"]
        filler.unlink()
        save.result()
        now = get(daemon, save)
        assert now.attempts > 1 and not now.HasField("error")
        assert os.listdir(folder) == ["a.ckpt"]
        assert torch.equal(client.load(folder / "a.ckpt")["x"], STATE["x"])
        assert re.search("warning .*a.ckpt: cannot .*No space left", daemon.log.read_text())

    def test_stays_full(self, make_daemon, folder, tmp_path):
        client = make_daemon().client()
        filler = fill(folder)
        failed = client.save(STATE, folder / "a.ckpt")
        with pytest.raises(ckptd.SaveError) as caught:
            failed.result()
        assert (caught.value.reason, failed.state) == ("STORAGE_FULL", "FAILED")
        client.raise_failed()  # it was raised already

        unheard = client.save(STATE, folder / "b.ckpt")
        client.save(STATE, tmp_path / "c.ckpt").result()  # elsewhere nothing is amiss

        def told():
            try:
                client.raise_failed()
            except ckptd.SaveError as error:
                return error
            return client.save({}, tmp_path / "d.ckpt") and None

        error = wait_until(told, "the failure to be told")
        assert (error.reason, error.save) == ("STORAGE_FULL", unheard.name)
        client.raise_failed()
        client.flush()
        filler.unlink()
        client.save(STATE, folder / "a.ckpt").result()
        assert os.listdir(folder) == ["a.ckpt"]


class TestReadOnlyTarget:
    def test_fails_at_once(self, make_daemon, folder):
        """Not retried, though there is an hour to do it; before it is written and between attempts."""
        daemon = make_daemon("--retry-timeout", "1h")
        client = daemon.client()
        filler = fill(folder)
        save = client.save(STATE, folder / "a.ckpt")
        waits_with(daemon, save, "STORAGE_FULL")
        remount(folder, "ro")
        error = ended(daemon, save).error
        assert reason_of(error) == "READ_ONLY_STORAGE"
        assert "Read-only file system; remount it writable" in error.message
        with pytest.raises(ckptd.SaveError) as caught:
            client.save(STATE, folder / "b.ckpt")
        assert caught.value.reason == "READ_ONLY_STORAGE"
        remount(folder, "rw")
        filler.unlink()
        client.save(STATE, folder / "a.ckpt").result()
        assert os.listdir(folder) == ["a.ckpt"]

    def test_while_it_is_queued(self, make_daemon, folder):
        daemon = make_daemon("--retry-timeout", "1h")
        client = daemon.client()
        client.save({"x": 0}, folder / "a.ckpt").result()
        session = ckptd.client.session_for(daemon.address)
        begin = pb.BeginLoadRequest(session_id=session.id, path=str(folder / "a.ckpt"))
        load = session.call("BeginLoad", begin, 10)
        save = client.save(STATE, folder / "a.ckpt")
        assert save.state == "QUEUED"
        remount(folder, "ro")
        session.call("EndLoad", pb.EndLoadRequest(load_id=load.load_id), 10)
        with pytest.raises(ckptd.SaveError) as caught:
            save.result()
        assert caught.value.reason == "READ_ONLY_STORAGE"
        assert get(daemon, save).attempts == 1
        assert client.load(folder / "a.ckpt") == {"x": 0}
        remount(folder, "rw")
        client.save({"x": 1}, folder / "a.ckpt").result()
        assert client.load(folder / "a.ckpt") == {"x": 1}


class TestJournal:
    @pytest.fixture
    def state_dir(self, tmp_path):
        with tmpfs(tmp_path / "state", "size=2m,mode=700") as folder:
            yield folder

    def test_full(self, make_daemon, state_dir, tmp_path):
        daemon = make_daemon("--state-dir", str(state_dir))
        client = daemon.client()
        accepted, refused, held = (tmp_path / f"{name}.ckpt" for name in "abc")
        client.save({"x": 0}, held).result()
        session = ckptd.client.session_for(daemon.address)
        begin = pb.BeginLoadRequest(session_id=session.id, path=str(held))
        load = session.call("BeginLoad", begin, 10)
        pending = client.save({"x": 1}, held)
        filler = fill(state_dir)

        with pytest.raises(ckptd.SaveError) as caught:
            client.save({"x": 2}, refused)
        error = caught.value
        assert error.reason == "JOURNAL_ERROR"
        assert re.search(f"{state_dir}/journal-.*(full|space).*; ", str(error)), error
        assert not refused.exists()

        # It has been made durable, but its end is not told while it is not written down.
        session.call("EndLoad", pb.EndLoadRequest(load_id=load.load_id), 10)
        waits_with(daemon, pending, "JOURNAL_ERROR")
        daemon.kill()  # nor is anything lost by that
        filler.unlink()
        daemon.start()
        pending.result()
        client.save({"x": 3}, accepted).result()
        assert [client.load(path) for path in (held, accepted)] == [{"x": 1}, {"x": 3}]
        assert daemon.stop() == 0

    def test_goes_on_when_there_is_room(self, make_daemon, state_dir, tmp_path):
        daemon = make_daemon("--state-dir", str(state_dir))
        client = daemon.client()
        client.save({"x": 0}, tmp_path / "a.ckpt").result()
        filler = fill(state_dir)
        for name in "bcd":
            with pytest.raises(ckptd.SaveError) as caught:
                client.save({"x": 1}, tmp_path / f"{name}.ckpt")
            assert caught.value.reason == "JOURNAL_ERROR"
        assert client.load(tmp_path / "a.ckpt") == {"x": 0}  # what needs no journal goes on
        filler.unlink()
        client.save({"x": 2}, tmp_path / "a.ckpt").result()
        client.flush()
        assert client.load(tmp_path / "a.ckpt") == {"x": 2}
        assert daemon.status().queue.staging_count == 0

    def test_read_only(self, make_daemon, state_dir):
        """The daemon does not start, and says why in one sentence."""
        daemon = make_daemon("--state-dir", str(state_dir))
        assert daemon.stop() == 0
        remount(state_dir, "ro")
        with pytest.raises(AssertionError) as caught:
            daemon.start()
        assert re.search(f"{state_dir}: cannot .*: Read-only file system", str(caught.value))
        remount(state_dir, "rw")
        daemon.start()
