"""A file system whose calls fail, or do half of what they were asked to."""

from __future__ import annotations

import errno
import os
import re

import ckptd
import pytest
import torch
from harness import wait_until

# Three pieces of the daemon's, and a rest.
STATE = {"x": torch.arange(6_400_000), "y": torch.ones(1000)}


@pytest.fixture
def daemon(make_daemon):
    """One that tries again for longer than any test takes."""
    return make_daemon("--retry-timeout", "60s")


@pytest.fixture
def client(daemon):
    return daemon.client()


def check_whole(client, faulty_fs, path):
    client.save(STATE, path).result()
    check_stored(client, faulty_fs, path)


def check_stored(client, faulty_fs, path):
    """The file is what torch.save would have written, and nothing is beside it."""
    loaded = client.load(path)  # compares each checksum
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    assert os.listdir(faulty_fs.backing / "sub") == [path.name]


@pytest.mark.parametrize(
    ("call", "skip"),
    [
        ("create", 0),
        ("fallocate", 0),
        ("write", 0),
        ("truncate", 0),
        ("fsync", 0),
        ("rename", 0),
        ("fsyncdir", 0),
        ("fsyncdir", 1),
        ("flush", 0),  # close
    ],
)
@pytest.mark.parametrize("before", ["new", "old"])
def test_passing_error(client, daemon, faulty_fs, call, skip, before):
    path = faulty_fs.folder / "sub" / "a.ckpt"
    if before == "old":
        client.save({"x": 0}, path).result()
    failed = re.compile(f"attempt 1 failed.*{path}: cannot .*: Input/output error")
    # The kernel makes many writes of one, and only an error of those that are made without an
    # io_uring is one.
    faulty_fs.fail(call, errno.EIO, skip, count=1_000_000 if call == "write" else 1)
    save = client.save(STATE, path)
    wait_until(lambda: failed.search(daemon.log.read_text()), "the first attempt to fail")
    faulty_fs.tell("reset")
    save.result()
    check_stored(client, faulty_fs, path)


def test_lasting_error(make_daemon, faulty_fs, tmp_path):
    client = make_daemon().client()
    path = faulty_fs.folder / "sub" / "a.ckpt"
    client.save({"x": 0}, path).result()
    faulty_fs.fail("fsync", errno.EIO, count=1000)
    save = client.save(STATE, path)
    client.save(STATE, tmp_path / "elsewhere.ckpt").result()
    with pytest.raises(ckptd.SaveError, match=f"{path}: cannot sync it: Input/output error") as caught:
        save.result()
    assert caught.value.reason == "STORAGE_ERROR"
    assert client.load(path) == {"x": 0}
    assert os.listdir(faulty_fs.backing / "sub") == ["a.ckpt"]
    faulty_fs.tell("reset")
    check_whole(client, faulty_fs, path)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (4096 * 3, 1_000_000),  # all of them, and what is left is aligned
        (1000, 1),  # what is left is not
        (0, 1),  # the disk takes nothing, and does not say why
    ],
)
def test_short_writes(client, faulty_fs, size, count):
    faulty_fs.tell(f"shorten {size} {count}")
    before = int(faulty_fs.ask("calls write"))
    check_whole(client, faulty_fs, faulty_fs.folder / "sub" / "a.ckpt")
    if count > 1:
        assert int(faulty_fs.ask("calls write")) - before > 1000


def test_without_direct_writes(client, daemon, faulty_fs):
    faulty_fs.tell("direct off")
    check_whole(client, faulty_fs, faulty_fs.folder / "sub" / "a.ckpt")
    log = daemon.log.read_text()
    assert "has no O_DIRECT" in log and "has no unnamed files" in log
