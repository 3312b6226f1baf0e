"""Loads that are lent memory: from the daemon's, or filled from storage."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import resource
import signal
import sys
import threading
import zipfile

import pytest
import torch
from ckptd import lending
from harness import wait_until
from test_processes import in_child

VERIFY = sys.modules["ckptd.verify"]  # the package has a function of that name
COUNT = 1 << 20  # floats: above what is lent at all


def state(value=1.0):
    shared = torch.full((COUNT,), value)
    return {"a": shared, "view": shared[::2], "b": torch.arange(1000), "n": 5}


def same(loaded, value=1.0):
    expected = state(value)
    assert set(loaded) == set(expected) and loaded["n"] == 5
    for key in ("a", "view", "b"):
        assert torch.equal(loaded[key], expected[key]), key
    assert loaded["a"].data_ptr() == loaded["view"].data_ptr()
    return True


def is_lent(tensor):
    """Whether a tensor lies in lent memory of this process."""
    at = tensor.data_ptr()
    return any(start <= at < start + size for start, (_, size) in lending._mapped.items())


@pytest.fixture
def saved(make_daemon, tmp_path):
    """A daemon, a client, and the path of a checkpoint that is durable and kept in memory."""
    daemon = make_daemon("--staging-budget", "64MiB")
    client = daemon.client()
    client.save(state(), tmp_path / "a.pt").result()
    yield daemon, client, tmp_path / "a.pt"
    client.close()


def forget(client, path):
    """Has the daemon's memory hold something else than the checkpoint at `path`."""
    client.save(state(9.0), path.parent / "other.pt").result()


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_from_memory(saved, weights_only):
    daemon, client, path = saved
    assert daemon.status().pool.kept_bytes > 4 * COUNT
    loaded = client.load(path, weights_only=weights_only)
    assert same(loaded) and is_lent(loaded["a"]) and is_lent(loaded["b"])
    assert daemon.status().pool.lent_bytes > 4 * COUNT
    loaded["a"].add_(1)
    assert same(torch.load(path)), "the file is the daemon's"


def test_a_plain_state_is_read_without_torch_load(saved, monkeypatch):
    _, client, path = saved
    monkeypatch.setattr(torch, "load", None)
    assert same(client.load(path))


def test_whoever_saved_it_writes_without_page_faults(saved):
    _, client, path = saved
    loaded = client.load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    loaded["a"].fill_(7)  # without reading, each page of a new mapping is one
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < loaded["a"].nbytes // mmap.PAGESIZE // 4


@pytest.mark.parametrize("verify", [True, False])
def test_from_storage(saved, verify):
    _, client, path = saved
    forget(client, path)
    loaded = client.load(path, verify=verify)
    assert same(loaded) and is_lent(loaded["a"])


@pytest.mark.parametrize("verify", [True, False])
def test_from_storage_in_many_pieces(saved, verify, monkeypatch):
    monkeypatch.setattr(lending, "_CHUNK_BYTES", 1 << 20)
    test_from_storage(saved, verify)


def test_checksums_follow_the_reads(saved, monkeypatch):
    _, client, path = saved
    forget(client, path)
    monkeypatch.setattr(lending, "_CHUNK_BYTES", 1 << 20)
    checked = threading.Event()
    read, crc32 = os.preadv, VERIFY.crc32

    def preadv(fd, buffers, offset):
        if offset in (1 << 20, 2 << 20):
            assert checked.wait(30), "nothing was checked before these were read"
        return read(fd, buffers, offset)

    def check(*arguments):
        checked.set()
        return crc32(*arguments)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(VERIFY, "crc32", check)
    assert same(client.load(path))


def test_comes_back_when_the_last_tensor_goes(saved):
    daemon, client, path = saved
    loaded = client.load(path)
    last = loaded.pop("view")
    del loaded
    gc.collect()
    assert daemon.status().pool.lent_bytes > 0 and is_lent(last)
    del last
    gc.collect()
    wait_until(lambda: daemon.status().pool.lent_bytes == 0, "the memory")
    assert not lending._mapped
    # And is used again, which nobody sees in what was loaded meanwhile.
    loaded = client.load(path)
    client.save(state(3.0), path).result()
    assert same(loaded) and same(client.load(path), 3.0)


def test_a_killed_process_gives_it_back(saved):
    daemon, client, path = saved
    client.close()
    pid = os.fork()
    if pid == 0:
        try:
            keep = daemon.client().load(path)  # noqa: F841
            signal.pause()
        finally:
            os._exit(1)
    wait_until(lambda: daemon.status().pool.lent_bytes > 0, "the child to load")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: daemon.status().pool.lent_bytes == 0, "the memory")


def test_a_forked_child_does_not_write_into_its_parent(saved):
    _, client, path = saved
    loaded = client.load(path)
    assert is_lent(loaded["a"])

    def change():
        torch.set_num_threads(1)  # those of OpenMP are the parent's
        assert same(loaded)
        loaded["a"].fill_(7)
        assert loaded["view"][0] == 7

    in_child(change)
    assert same(loaded)


def test_a_changed_or_replaced_file_is_read_again(saved):
    _, client, path = saved
    content = bytearray(path.read_bytes())
    at = content.index(b"\x00\x00\x80\x3f" * 16)
    content[at : at + 4] = b"\x00\x00\x00\x40"
    path.write_bytes(content)
    with pytest.raises(Exception, match="CRC-32"):
        client.load(path)
    torch.save(state(2.0), path)
    assert same(client.load(path), 2.0)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        client.load(path)


def test_a_second_reader_gets_a_copy(saved):
    _, client, path = saved
    first = client.load(path)
    first["a"].fill_(0)

    def load():
        torch.set_num_threads(1)
        assert same(client.load(path))

    in_child(load)
    second = client.load(path)
    assert same(second) and is_lent(second["a"])


def test_leaves_enough_for_a_save(make_daemon, tmp_path):
    """Whoever keeps what it has loaded can still save."""
    client = make_daemon("--staging-budget", f"{COUNT * 4 * 2 - 1}").client(timeout=10)
    path = tmp_path / "a.pt"
    client.save(state(), path).result()
    loaded = client.load(path)
    assert same(loaded) and not is_lent(loaded["a"])
    client.save(loaded, path).result()


def test_not_lent_where_that_is_not_wanted(saved, tmp_path):
    daemon, client, path = saved
    loaded = client.load(path, lend=False)
    assert same(loaded) and not is_lent(loaded["a"])
    other = daemon.client(transport="grpc")
    assert same(other.load(path))
    other.close()
    assert daemon.status().pool.lent_bytes == 0


def test_old_format(saved):
    _, client, path = saved
    torch.save(state(4.0), path, _use_new_zipfile_serialization=False)
    assert same(client.load(path), 4.0)


def test_other_loads_of_torch_are_left_alone(saved, tmp_path):
    _, client, path = saved
    torch.save(state(5.0), tmp_path / "own.pt")
    client.load(path)
    own = torch.load(tmp_path / "own.pt", mmap=True)
    own["a"].fill_(0)
    assert same(torch.load(tmp_path / "own.pt"), 5.0)
    assert "from_file" not in vars(torch.UntypedStorage)


@pytest.mark.parametrize("verify", [True, False])
def test_a_compressed_file_is_inflated(saved, tmp_path, verify):
    """torch.load with mmap takes what is compressed for the weights, without a word."""
    _, client, path = saved
    noise = torch.randint(0, 256, (4 * COUNT,), dtype=torch.uint8)
    torch.save({"a": torch.ones(COUNT), "noise": noise}, path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as plain:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
            for name in plain.namelist():
                zipped.writestr(name, plain.read(name))
    loaded = client.load(packed, verify=verify)
    assert torch.equal(loaded["a"], torch.ones(COUNT)) and torch.equal(loaded["noise"], noise)


def test_reads_through_the_cache_where_direct_reads_are_refused(saved, monkeypatch):
    _, client, path = saved
    forget(client, path)
    monkeypatch.setattr(lending, "_CHUNK_BYTES", 1 << 20)
    preadv = os.preadv
    both_are_refused = threading.Barrier(2)

    def refuse(fd, buffers, offset):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            both_are_refused.wait(10)
            raise OSError(errno.EINVAL, "no direct reads here")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    loaded = client.load(path)
    assert same(loaded) and is_lent(loaded["a"])
    assert both_are_refused.n_waiting == 0
