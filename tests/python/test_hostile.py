"""The daemon as it is run, and clients that mean it harm."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager

import pytest
import torch
from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb
from harness import WAIT_SECONDS, wait_until


@contextmanager
def announced(daemon, path, size):
    """A save of `size` bytes that is STAGING, by raw calls: the stub, and what BeginSave said."""
    with rpc.open_channel(daemon.address) as channel:
        stub = rpc.Stub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest(client="hostile"), timeout=WAIT_SECONDS)
        try:
            request = pb.BeginSaveRequest(
                session_id=next(session).session_id,
                name="jobs/hostile/saves/1",
                path=str(path),
                backend="torch",
                object_bytes=size,
            )
            yield stub, stub.BeginSave(request, timeout=WAIT_SECONDS)
        finally:
            session.cancel()


@pytest.fixture
def private_daemon(make_daemon):
    """One that may die of the test."""
    return make_daemon("--staging-budget", "64MiB")


def test_a_stream_into_an_image_that_was_cut(private_daemon, tmp_path):
    client = private_daemon.client(job="other")
    state = {"x": torch.arange(1_000_000)}
    client.save(state, tmp_path / "before.ckpt").result()
    size = 10 << 20
    with announced(private_daemon, tmp_path / "a.ckpt", size) as (stub, begun):
        os.truncate(begun.image.path, 0)
        piece = pb.WriteSaveRequest(
            name=begun.save.name, offset=begun.object_offset, data=b"x" * size
        )
        stub.WriteSave(iter([piece]), timeout=WAIT_SECONDS)
        stub.CommitSave(pb.CommitSaveRequest(name=begun.save.name), timeout=WAIT_SECONDS)

        def ended():
            save = stub.GetSave(pb.GetSaveRequest(name=begun.save.name), timeout=WAIT_SECONDS)
            return save if save.HasField("end_time") else None

        save = wait_until(ended, "the save to end")
    assert save.state == pb.Save.FAILED
    assert "cut the image" in save.error.message
    client.save(state, tmp_path / "after.ckpt").result()
    assert sorted(os.listdir(tmp_path)) == ["after.ckpt", "before.ckpt", "daemon-0"]
    assert torch.equal(client.load(tmp_path / "after.ckpt")["x"], state["x"])
    client.close()
    assert private_daemon.stop() == 0


def test_takes_all_descriptors_that_it_may(make_daemon):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        daemon = make_daemon()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
