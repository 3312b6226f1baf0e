"""A file system that does not answer: it holds up what is saved to it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import time

import ckptd
import pytest
import torch
from ckptd.v1 import checkpoint_pb2 as pb
from faulty import HANG_SECONDS
from harness import WAIT_SECONDS

SAVES = 5
# What a trainer may take for a save, as a deadline of its calls.
PATIENCE = 10.0


def state(number):
    return {"x": torch.full((100_000,), number)}


@pytest.fixture
def hung(faulty_fs):
    """Hangs from `hang` on; `release` ends that, after the time that the environment asks for."""

    class Hung:
        folder = faulty_fs.folder / "new" / "folder"
        wait = faulty_fs.wait_for_hanging

        def hang(self, how="hang"):
            faulty_fs.tell(how)
            self.since = time.monotonic()

        def release(self):
            time.sleep(max(0.0, self.since + HANG_SECONDS - time.monotonic()))
            faulty_fs.tell("release")

    return Hung()


def save_some(client, folder):
    """Saves that return though their storage hangs."""
    return [client.save(state(number), folder / f"{number}.ckpt") for number in range(SAVES)]


def check_others_go_on(daemon, client, folder):
    """By the same client; but a removal waits for all that its job has saved."""
    for number in range(SAVES):
        path = folder / f"elsewhere-{number}.ckpt"
        client.save(state(number), path).result()
        assert torch.equal(client.load(path)["x"], state(number)["x"])
    daemon.client(job="tidy", timeout=PATIENCE).remove(path)
    assert not path.exists()


def check_all_durable(daemon, client, saves):
    for number, save in enumerate(saves):
        reply = daemon.call("GetSave", pb.GetSaveRequest(name=save.name))
        assert reply.state == pb.Save.SUCCEEDED, reply
        assert torch.equal(client.load(save.path)["x"], state(number)["x"])
    assert len(os.listdir(os.path.dirname(saves[0].path))) == len(saves)


def flush(daemon, client):
    request = pb.FlushRequest(parent=f"jobs/{client.job}")
    assert not daemon.call("Flush", request).failed_saves


def test_others_go_on(make_daemon, hung, tmp_path):
    daemon = make_daemon()
    client = daemon.client(timeout=PATIENCE)
    client.save(state(9), hung.folder / "before.ckpt").result()
    hung.hang()
    saves = save_some(client, hung.folder)
    hung.wait()
    check_others_go_on(daemon, client, tmp_path)
    other = daemon.client(job="other", timeout=PATIENCE)
    check_others_go_on(daemon, other, tmp_path / "sub")
    with pytest.raises(ckptd.CheckpointTimeoutError):
        daemon.client(timeout=0.5).load(hung.folder / "0.ckpt")
    check_others_go_on(daemon, client, tmp_path)
    assert all(save.state in ("QUEUED", "PERSISTING") for save in saves)
    with pytest.raises(ckptd.SaveTimeoutError, match="goes on"):
        saves[0].result(timeout=0.1)
    hung.release()
    client.flush(timeout=WAIT_SECONDS)
    client.remove(hung.folder / "before.ckpt")
    check_all_durable(daemon, client, saves)
    log = daemon.log.read_text()
    assert f"path {saves[0].path}: its file system does not answer" in log


def test_a_load_that_hangs_at_its_end(make_daemon, hung, tmp_path):
    """Letting go of the file of a load hangs, too: by the call, and by the end of the session."""
    daemon = make_daemon()
    client = daemon.client(timeout=PATIENCE)
    loader = daemon.client(job="loader")
    loader.save(state(0), hung.folder / "a.ckpt").result()
    client.save(state(0), tmp_path / "before.ckpt").result()
    with ckptd.rpc.open_channel(daemon.address) as channel:
        stub = ckptd.rpc.Stub(channel)
        for end_by_call in (True, False):
            stream = stub.OpenSession(pb.OpenSessionRequest(client="loader"), timeout=PATIENCE)
            session = next(stream).session_id
            request = pb.BeginLoadRequest(session_id=session, path=str(hung.folder / "a.ckpt"))
            load = stub.BeginLoad(request, timeout=PATIENCE)
            hung.hang()
            if end_by_call:
                ended = stub.EndLoad.future(pb.EndLoadRequest(load_id=load.load_id))
            else:
                stream.cancel()
            hung.wait()
            check_others_go_on(daemon, client, tmp_path)
            hung.release()
            if end_by_call:
                ended.result(timeout=PATIENCE)
                stream.cancel()


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_daemon_ends_and_goes_on(make_daemon, hung, tmp_path, known):
    daemon = make_daemon("--drain-timeout", "100ms")
    client = daemon.client(timeout=PATIENCE)
    if known:
        client.save(state(0), hung.folder / "0.ckpt").result()
    hung.hang()
    saves = save_some(client, hung.folder)
    hung.wait()
    assert daemon.stop() == 0  # within 20 s: the drain's timeout, and 10 s for what hangs
    # The next one serves though the storage still hangs.
    daemon.start()
    check_others_go_on(daemon, client, tmp_path)
    flushed = daemon.client(job=client.job)
    hung.wait()
    assert daemon.status().queue.succeeded_count == SAVES
    daemon.kill()
    daemon.start()
    hung.release()
    flush(daemon, flushed)
    check_all_durable(daemon, flushed, saves)
    assert daemon.stop() == 0
    assert "does not end" in daemon.log.read_text()


def test_a_process_that_cannot_end(make_daemon, hung, tmp_path):
    """The kernel keeps a process in a call that knows no interrupt: nothing is lost by it."""
    daemon = make_daemon("--drain-timeout", "100ms")
    client = daemon.client(timeout=PATIENCE)
    hung.hang("hang-hard")
    saves = save_some(client, hung.folder)
    hung.wait()
    check_others_go_on(daemon, client, tmp_path)
    daemon.process.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(0.5)
    hung.release()
    daemon.process.wait(WAIT_SECONDS)
    daemon.start()
    flush(daemon, client)
    check_all_durable(daemon, client, saves)
