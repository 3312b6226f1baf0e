"""Bad input and failing storage: a sentence each, and no effect on anyone else."""

from __future__ import annotations

import os

import ckptd
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from harness import wait_until
from mounts import needs_root, tmpfs


@pytest.fixture
def bystander(client, tmp_path):
    """Saves before and after the test's mishap, by the same client, and checks both."""
    client.save({"x": 1}, tmp_path / "before.ckpt")
    yield
    client.save({"x": 2}, tmp_path / "after.ckpt")
    assert client.load(tmp_path / "before.ckpt") == {"x": 1}
    assert client.load(tmp_path / "after.ckpt") == {"x": 2}


def refused(client, state, path, reason) -> ckptd.SaveError:
    """A save that is refused at once; checks what every refusal has in common."""
    with pytest.raises(ckptd.SaveError) as caught:
        client.save(state, path).result()
    error = caught.value
    assert error.reason == reason, error
    assert str(error).removeprefix("path ").startswith(f"{path}: "), error
    assert error.path == str(path)
    assert error.save.startswith(f"jobs/{client.job}/saves/")
    client.flush()  # raises nothing: the caller has heard of it
    return error


@pytest.mark.usefixtures("bystander")
class TestBadPaths:
    def test_directory_that_cannot_be_created(self, client, tmp_path):
        (tmp_path / "file").write_bytes(b"x")
        refused(client, {}, tmp_path / "file" / "sub" / "a.ckpt", "NOT_A_DIRECTORY")

    def test_directory_at_the_path(self, client, tmp_path):
        (tmp_path / "folder").mkdir()
        refused(client, {}, tmp_path / "folder", "PATH_IS_DIRECTORY")
        with pytest.raises(ckptd.CheckpointError) as caught:
            client.load(tmp_path / "folder")
        assert caught.value.reason == "PATH_IS_DIRECTORY"

    def test_path_too_long(self, client, tmp_path):
        refused(client, {}, "/" + "x/" * 2100 + "a.ckpt", "INVALID_PATH")

    @needs_root
    def test_read_only_file_system(self, client, tmp_path):
        with tmpfs(tmp_path / "mount", "ro") as folder:
            refused(client, {}, folder / "a.ckpt", "READ_ONLY_STORAGE")

    def test_unknown_backend(self, client, tmp_path):
        with pytest.raises(ckptd.SaveError) as caught:
            client.save({}, tmp_path / "a.ckpt", backend="papyrus")
        assert caught.value.reason == "BACKEND_NOT_FOUND"

    def test_unpicklable(self, client, tmp_path):
        with pytest.raises(ckptd.UnpicklableError, match=r"state\['fn'\]"):
            client.save({"fn": lambda: 0}, tmp_path / "a.ckpt")
        assert not (tmp_path / "a.ckpt").exists()

    def test_larger_than_the_budget(self, client, tmp_path):
        state = {"x": torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage(2 << 30))}
        error = refused(client, state, tmp_path / "a.ckpt", "EXCEEDS_BUDGET")
        assert "budget" in str(error)
        with pytest.raises(ckptd.SaveError) as caught:
            client.reserve(2 << 30)
        assert caught.value.reason == "EXCEEDS_BUDGET"


class TestFullDisk:
    """Saves of 4 MB into a file system of 2 MB: accepted, then failed."""

    STATE = {"x": torch.zeros(1_000_000)}

    @pytest.fixture
    def full(self, tmp_path):
        if os.geteuid():
            pytest.skip("mounts a tmpfs: needs root")
        with tmpfs(tmp_path / "mount", "size=2m") as folder:
            yield folder

    @pytest.fixture
    def client(self, make_daemon):
        return make_daemon("--staging-budget", "256MiB").client(job="full")

    def test_result_raises_the_reason(self, client, full):
        save = client.save(self.STATE, full / "a.ckpt")
        with pytest.raises(ckptd.SaveError) as caught:
            save.result()
        error = caught.value
        assert error.reason == "STORAGE_FULL"
        assert (error.path, error.save) == (str(full / "a.ckpt"), save.name)
        assert "No space left" in str(error)
        assert os.listdir(full) == []
        assert save.state == "FAILED" and save.done()
        assert str(save.exception()) == str(error)
        client.flush()  # reported already
        with pytest.raises(FileNotFoundError, match="Checkpoint file not found: .*No space left"):
            client.load(full / "a.ckpt")

    def test_what_was_there_stays(self, client, full):
        client.save({"x": 1}, full / "a.ckpt").result()
        with pytest.raises(ckptd.SaveError):
            client.save(self.STATE, full / "a.ckpt").result()
        assert client.load(full / "a.ckpt") == {"x": 1}
        assert os.listdir(full) == ["a.ckpt"]

    def test_flush_raises_once_for_all(self, client, full):
        client.save(self.STATE, full / "a.ckpt")
        client.save(self.STATE, full / "b.ckpt")
        with pytest.raises(ckptd.SaveError) as caught:
            client.flush()
        assert "a.ckpt" in str(caught.value) and "Also: " in str(caught.value)
        assert "b.ckpt" in str(caught.value)
        client.flush()

    def test_each_client_hears_of_its_own(self, client, full):
        other = ckptd.Client(address=client.address, job="full", on_unavailable="raise")
        client.save(self.STATE, full / "a.ckpt")
        other.flush()
        with pytest.raises(ckptd.SaveError):
            client.flush()

    def test_raise_failed_does_not_wait_and_raises_once(self, client, full, tmp_path):
        client.save(self.STATE, full / "a.ckpt")

        def raised():
            client.save({"x": 1}, tmp_path / "b.ckpt")  # its answer tells of the other
            try:
                client.raise_failed()
            except ckptd.SaveError as error:
                return error
            return None

        assert wait_until(raised, "the failure to be told").reason == "STORAGE_FULL"
        client.raise_failed()
        client.flush()

    def test_failed_removal_is_raised_by_flush(self, client, full):
        # The save before it in its job is not durable, so that the file is kept.
        (full / "old.ckpt").write_bytes(b"x")
        save = client.save(self.STATE, full / "a.ckpt")
        client.remove(full / "old.ckpt", wait=False)
        with pytest.raises(ckptd.SaveError):
            save.result()
        with pytest.raises(ckptd.CheckpointError, match="old.ckpt"):
            client.flush()
        assert os.listdir(full) == ["old.ckpt"]

    def test_latest_leaves_failures_to_be_raised(self, client, full):
        torch.save({"x": 1}, full / "old.ckpt")
        client.save(self.STATE, full / "a.ckpt")
        client.remove(full / "old.ckpt", wait=False)
        assert client.latest(full) == str(full / "old.ckpt")
        with pytest.raises(ckptd.SaveError, match="No space left"):
            client.raise_failed()
        with pytest.raises(ckptd.CheckpointError, match="old.ckpt"):
            client.flush()

    def test_saves_nobody_asked_after_are_told_at_exit(self, client, full, run_python):
        program = """
            import ckptd, sys, torch
            ckptd.save({"x": torch.zeros(1_000_000)}, sys.argv[1])
        """
        result = run_python(program, full / "a.ckpt", CKPTD_ADDRESS=client.address)
        assert "a.ckpt" in result.stderr and "No space left" in result.stderr


def hold(daemon, path):
    """Holds `path`, so that saves to it stay queued; returns the session and how to let go."""
    session = ckptd.client.session_for(daemon.address)
    begin = pb.BeginLoadRequest(session_id=session.id, path=str(path))
    return session, pb.EndLoadRequest(load_id=session.call("BeginLoad", begin, 10).load_id)


class TestDeadlines:
    def test_save_waits_for_memory_and_says_so(self, make_daemon, tmp_path):
        daemon = make_daemon("--staging-budget", "64MiB")
        state = {"x": torch.zeros(10_000_000)}
        client = daemon.client(timeout=0.5)
        session = ckptd.client.session_for(daemon.address)
        session.connect()
        held = pb.BeginSaveRequest(
            session_id=session.id,
            name="jobs/j/saves/s",
            path=str(tmp_path / "held.ckpt"),
            backend="torch",
            object_bytes=10,
            tensors=[pb.TensorSpec(name="0", size_bytes=40_000_000)],
        )
        session.call("BeginSave", held, 10)
        with pytest.raises(ckptd.SaveTimeoutError) as caught:
            client.save(state, tmp_path / "a.ckpt")
        assert isinstance(caught.value, TimeoutError)
        assert str(caught.value).startswith(f"{tmp_path}/a.ckpt: not done within 0.5 s: ")
        assert "staging" in str(caught.value)
        session.call("AbortSave", pb.AbortSaveRequest(name=held.name), 10)
        client.save(state, tmp_path / "a.ckpt").result()

    def test_load_waits_for_the_path_and_says_so(self, client, daemon, tmp_path):
        path = tmp_path / "a.ckpt"
        client.save({"x": 1}, path).result()
        session, load = hold(daemon, path)
        save = client.save({"x": 2}, path)
        with pytest.raises(ckptd.SaveTimeoutError, match="a.ckpt: not done within 0.2 s"):
            save.result(timeout=0.2)
        with pytest.raises(ckptd.CheckpointTimeoutError):
            client.flush(timeout=0.2)
        with pytest.raises(ckptd.CheckpointTimeoutError):
            daemon.client(timeout=0.2).load(path)
        session.call("EndLoad", load, 10)
        assert client.load(path) == {"x": 2}


def test_cancelled_save_is_an_error(client, daemon, tmp_path):
    path = tmp_path / "a.ckpt"
    client.save({"x": 1}, path).result()
    session, load = hold(daemon, path)
    save = client.save({"x": 2}, path)
    daemon.call("CancelSave", pb.CancelSaveRequest(name=save.name))
    session.call("EndLoad", load, 10)
    with pytest.raises(ckptd.SaveError) as caught:
        save.result()
    assert (caught.value.reason, save.state) == ("CANCELLED_BY_REQUEST", "CANCELLED")
    assert client.load(path) == {"x": 1}


class TestTransport:
    def test_image_out_of_reach_falls_back_to_the_stream(self, client, tmp_path, monkeypatch):
        def unreachable(mapping, image):
            raise ckptd.shm.NotSharedError(f"{image.path}: No such file or directory")

        monkeypatch.setattr(ckptd.shm.Mapping, "__init__", unreachable)
        monkeypatch.setattr(ckptd.transfer, "_open_same", lambda path, begun: -1)
        ckptd.client.session_for(client.address).mappings.close()
        client.save({"x": torch.arange(3_000_000)}, tmp_path / "a.ckpt")
        assert torch.equal(client.load(tmp_path / "a.ckpt")["x"], torch.arange(3_000_000))
        strict = ckptd.Client(client.address, on_unavailable="raise", transport="shm")
        with pytest.raises(ckptd.SaveError, match='use transport="auto"') as caught:
            strict.save({"x": 1}, tmp_path / "b.ckpt")
        assert caught.value.reason == "NOT_SHARED"

    def test_file_of_another_inode_is_not_mapped(self, tmp_path):
        (tmp_path / "image").write_bytes(b"0" * 4096)
        wrong = pb.Image(path=str(tmp_path / "image"), size_bytes=4096, inode=1, id=1)
        with pytest.raises(ckptd.shm.NotSharedError):
            ckptd.shm.Mapping(wrong)
        (tmp_path / "link").symlink_to("image")
        inode = (tmp_path / "image").stat().st_ino
        link = pb.Image(path=str(tmp_path / "link"), size_bytes=4096, inode=inode, id=1)
        with pytest.raises(ckptd.shm.NotSharedError):
            ckptd.shm.Mapping(link)
