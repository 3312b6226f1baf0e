"""A daemon that may open 64 files: more saves and clients than that."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import ckptd
import grpc
import pytest
from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb

SAVES = 80
CLIENTS = 40


@pytest.fixture
def daemon(make_daemon):
    return make_daemon("--retry-timeout", "60s", wrapper=("prlimit", "--nofile=64:64"))


def check_works(daemon, folder):
    client = daemon.client(job="afterwards")
    for number in range(SAVES):
        client.save({"x": number}, folder / f"afterwards-{number}.ckpt").result()
    assert client.load(folder / f"afterwards-{SAVES - 1}.ckpt") == {"x": SAVES - 1}
    assert daemon.process.poll() is None


def test_saves(daemon, faulty_fs, tmp_path):
    """Each pending save has an image open."""
    client = daemon.client()
    faulty_fs.tell("hang")
    saves, refused = [], []
    for number in range(SAVES):
        try:
            path = faulty_fs.folder / f"{number}.ckpt"
            saves.append((number, client.save({"x": number}, path)))
        except ckptd.SaveError as error:
            refused.append(error)
    assert saves and refused
    for error in refused:
        assert error.reason == "STORAGE_ERROR", error
        assert "Too many open files; raise the limit on open files (ulimit -n)" in str(error)
    faulty_fs.tell("release")
    client.flush()
    assert sorted(os.listdir(faulty_fs.backing)) == sorted(f"{n}.ckpt" for n, _ in saves)
    for number, save in saves:
        assert save.state == "SUCCEEDED"
        assert client.load(save.path) == {"x": number}
    check_works(daemon, tmp_path)


def test_connections(daemon, tmp_path):
    """Those that are too many are closed; who has one is served."""
    first = daemon.client(job="first")
    first.save({"x": 0}, tmp_path / "before.ckpt").result()
    channels = [rpc.open_channel(daemon.address) for _ in range(CLIENTS)]
    sessions = []
    for channel in channels:
        stream = rpc.Stub(channel).OpenSession(pb.OpenSessionRequest(client="many"), timeout=60)
        sessions.append(stream)
    opened = []
    lock = threading.Lock()

    def first_event(stream):
        try:
            next(stream)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return
        with lock:
            opened.append(stream)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(first_event, sessions))
    assert 0 < len(opened) < CLIENTS
    first.save({"x": 1}, tmp_path / "meanwhile.ckpt").result()
    assert first.load(tmp_path / "meanwhile.ckpt") == {"x": 1}
    for channel in channels:
        channel.close()
    check_works(daemon, tmp_path)
    assert "raise the limit on open files" in daemon.log.read_text()
    assert daemon.stop() == 0
