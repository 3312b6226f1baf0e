"""Loads refuse what is damaged, fall back where told to, and `latest` passes it over."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import zipfile

import ckptd
import pytest
import torch
from ckptd import rpc
from ckptd.v1 import checkpoint_pb2 as pb
from harness import WAIT_SECONDS
from objects import Custom, same
from zips import STATE, damage, saved

# ---- load


@pytest.fixture(params=["shm", "grpc"])
def loader(request, daemon):
    client = daemon.client(transport=request.param)
    yield client
    client.close()


def test_load_refuses_a_corrupt_file(loader, tmp_path):
    path = tmp_path / "a.pt"
    loader.save(STATE, path).result()
    assert same(STATE, loader.load(path))
    offset = damage(path)
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        loader.load(path)
    error = caught.value
    assert (error.record, error.offset, error.path) == ("archive/data/0", offset, str(path))
    assert not same(STATE, loader.load(path, verify=False)), "torch.load itself sees nothing"


def test_load_of_a_truncated_file(loader, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(saved()[:-10])
    with pytest.raises(ckptd.CorruptCheckpointError, match="lacks its end"):
        loader.load(path)


def test_load_falls_back(loader, tmp_path, caplog):
    paths = [tmp_path / f"{i}.pt" for i in range(4)]
    for i, path in enumerate(paths[1:]):
        torch.save({"i": i + 1}, path)
    damage(paths[1], "data.pkl")
    with caplog.at_level(logging.WARNING, "ckptd"):
        assert loader.load(paths[0], fallback=paths[1:]) == {"i": 2}
    missing, damaged = [r.getMessage() for r in caplog.records if "Falling back" in r.getMessage()]
    assert f"{paths[0]}" in missing and missing.endswith(f"Falling back to {paths[1]}.")
    assert "CRC-32" in damaged and damaged.endswith(f"Falling back to {paths[2]}.")
    assert loader.load(paths[2], fallback=paths[3]) == {"i": 2}
    assert loader.load(paths[1], fallback=str(paths[3])) == {"i": 3}


def test_load_tells_of_all_that_failed(client, tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(STATE, a)
    offset = damage(a)
    with pytest.raises(ckptd.CorruptCheckpointError) as caught:
        client.load(a, fallback=[b])
    assert str(caught.value).count("\nAlso: ") == 1
    assert str(b) in str(caught.value).split("\nAlso: ")[1]
    assert (caught.value.record, caught.value.offset) == ("a/data/0", offset)
    with pytest.raises(FileNotFoundError) as missing:
        client.load(b, fallback=[a])
    assert "\nAlso: " in str(missing.value) and "CRC-32" in str(missing.value)


def test_other_errors_do_not_fall_back(client, tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(Custom(), a)
    torch.save(STATE, b)
    with pytest.raises(pickle.UnpicklingError):
        client.load(a, weights_only=True, fallback=[b])


def test_load_without_a_daemon_verifies(tmp_path):
    path, older = tmp_path / "a.pt", tmp_path / "b.pt"
    client = ckptd.Client(f"unix:{tmp_path}/none.sock", on_unavailable="fallback")
    for one in (path, older):
        torch.save(STATE, one)
    damage(path)
    with pytest.warns(RuntimeWarning), pytest.raises(ckptd.CorruptCheckpointError):
        client.load(path)
    assert same(STATE, client.load(path, fallback=[tmp_path / "none", older]))


def test_module_functions(daemon, tmp_path, run_python):
    path, older = tmp_path / "a.pt", tmp_path / "b.pt"
    for one in (older, path):
        torch.save({"x": 1}, one)
    damage(path, "data.pkl")
    os.utime(older, (1, 1))
    run_python(
        """
        import sys, ckptd
        path, older, folder = sys.argv[1:]
        assert ckptd.load(path, fallback=[older]) == {"x": 1}
        assert ckptd.latest(folder) == older
        assert ckptd.verify(older) is None
        try:
            ckptd.load(path)
        except ckptd.CorruptCheckpointError as error:
            assert error.record.endswith("data.pkl")
        else:
            raise AssertionError
        """,
        path,
        older,
        tmp_path,
    )


def test_lightning_plugin_verifies(daemon, tmp_path):
    lightning = pytest.importorskip("ckptd.lightning")
    path = tmp_path / "a.ckpt"
    io_plugin = lightning.SidecarCheckpointIO(client=daemon.client())
    io_plugin.save_checkpoint(STATE, path)
    io_plugin.teardown()
    damage(path)
    with pytest.raises(ckptd.CorruptCheckpointError):
        io_plugin.load_checkpoint(path)
    unchecked = lightning.SidecarCheckpointIO(client=daemon.client(), verify=False)
    assert not same(STATE, unchecked.load_checkpoint(path))
    unchecked.teardown()


# ---- latest


@contextlib.contextmanager
def held_paths(daemon):
    """Keeps the saves to paths from beginning, each until it is let go."""
    with rpc.open_channel(daemon.address) as channel:
        stub = rpc.Stub(channel)
        events = stub.OpenSession(pb.OpenSessionRequest(client="holder"))
        session_id = next(events).session_id

        def begin_load(path):
            request = pb.BeginLoadRequest(session_id=session_id, path=str(path))
            load_id = stub.BeginLoad(request, timeout=WAIT_SECONDS).load_id
            end = pb.EndLoadRequest(load_id=load_id)
            return lambda: stub.EndLoad(end, timeout=WAIT_SECONDS)

        yield begin_load
        events.cancel()


def test_latest_passes_over_what_is_corrupt(client, tmp_path, caplog):
    for i in range(4):
        torch.save({"i": i}, tmp_path / f"{i}.pt")
        os.utime(tmp_path / f"{i}.pt", (i, i))
    assert client.latest(tmp_path) == str(tmp_path / "3.pt")
    damage(tmp_path / "3.pt", "data.pkl")
    (tmp_path / "2.pt").write_bytes(b"")
    for i in (2, 3):  # Written just now, in an order that the clock may or may not tell.
        os.utime(tmp_path / f"{i}.pt", (i, i))
    with caplog.at_level(logging.WARNING, "ckptd"):
        assert client.latest(str(tmp_path)) == str(tmp_path / "1.pt")
    warned = [r.getMessage() for r in caplog.records if "Passed over" in r.getMessage()]
    assert len(warned) == 2
    assert "3.pt: is corrupt" in warned[0] and "2.pt: is corrupt" in warned[1]


def test_latest_takes_checkpoints_only(client, tmp_path):
    good = tmp_path / "good.pt"
    torch.save({"x": 1}, good)
    os.utime(good, (1, 1))
    torch.save(STATE, tmp_path / ".hidden.pt")
    torch.save(STATE, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "events.log").write_text("text")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a/b", "c")
    (tmp_path / "folder.pt").mkdir()
    torch.save(STATE, tmp_path / "folder.pt" / "inner.pt")
    (tmp_path / "link.pt").symlink_to(good)
    assert client.latest(tmp_path) == str(good)


def test_latest_of_equal_times_goes_by_name(client, tmp_path):
    for name in ("a.pt", "c.pt", "b.pt"):
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, (5, 5))
    assert client.latest(tmp_path) == str(tmp_path / "c.pt")


def test_latest_finds_none(client, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: there is no torch checkpoint"):
        client.latest(tmp_path)
    (tmp_path / "a.pt").write_bytes(saved()[:-1])
    with pytest.raises(FileNotFoundError, match="\nAlso: .*a.pt: is corrupt"):
        client.latest(tmp_path)
    with pytest.raises(FileNotFoundError):
        client.latest(tmp_path / "none")


@pytest.mark.parametrize("through_link", [False, True])
def test_latest_waits_for_what_is_pending_in_the_folder(client, daemon, tmp_path, through_link):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    if through_link:
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    other = daemon.client(job="another-job")
    other.save({"x": 1}, folder / "a.pt").result()
    other.save({"x": 1}, elsewhere / "a.pt").result()
    with held_paths(daemon) as begin_load:
        release = begin_load(folder / "a.pt")
        begin_load(elsewhere / "a.pt")
        other.save({"x": 2}, folder / "a.pt")
        other.save({"x": 2}, elsewhere / "a.pt")
        impatient = daemon.client(timeout=0.2)
        with pytest.raises(ckptd.CheckpointTimeoutError, match=str(folder.resolve())):
            impatient.latest(folder)
        release()
        assert client.latest(folder) == str(folder / "a.pt")
        assert torch.load(folder / "a.pt") == {"x": 2}
    other.flush()
    other.close()


def test_latest_without_a_daemon(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    client = ckptd.Client(f"unix:{tmp_path}/none.sock", on_unavailable="start")
    assert client.latest(tmp_path) == str(tmp_path / "a.pt")
    assert not (tmp_path / "none.sock").exists(), "it starts none"
