"""50 saves of 12 MB through a staging budget of 64 MiB, with each policy."""

from __future__ import annotations

import contextlib
import os

import ckptd
import pytest
import torch
from ckptd.errors import reason_of
from ckptd.v1 import checkpoint_pb2 as pb
from harness import WAIT_SECONDS
from test_failures import hold

BUDGET = 64 << 20
SAVES = 50
ELEMENTS = 1_500_000


@pytest.fixture
def daemon(make_daemon):
    return make_daemon("--staging-budget", str(BUDGET))


def state(number):
    return {"x": torch.full((ELEMENTS,), number)}


def pool_bytes(daemon):
    """Memory that images take; one that gets another name meanwhile counts once."""
    blocks = {}
    for folder, _, names in os.walk(daemon.pool):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(os.path.join(folder, name))
                blocks[info.st_ino] = info.st_blocks
    return sum(blocks.values()) * 512


def check_content(client, path, number):
    assert torch.equal(client.load(path)["x"], state(number)["x"])


def listed(daemon):
    """Every save that the daemon knows, by path."""
    response = daemon.call("ListSaves", pb.ListSavesRequest(page_size=1000))
    return {save.path: save for save in response.saves}


def test_block(daemon, tmp_path):
    client = daemon.client()
    most = 0
    for number in range(SAVES):
        client.save(state(number), tmp_path / f"{number}.ckpt")
        most = max(most, pool_bytes(daemon))
    client.flush()
    for number in range(SAVES):
        check_content(client, tmp_path / f"{number}.ckpt", number)
    assert most <= BUDGET
    assert daemon.status().queue.succeeded_count == SAVES


def test_reject(daemon, faulty_fs):
    """While storage hangs, the budget is soon used up."""
    client = daemon.client(on_full="reject")
    client.save({}, faulty_fs.folder / "first.ckpt").result()
    faulty_fs.tell("hang")
    paths = [faulty_fs.folder / f"{number}.ckpt" for number in range(SAVES)]
    rejected = {}
    for number, path in enumerate(paths):
        try:
            client.save(state(number), path)
        except ckptd.SaveError as error:
            rejected[path] = error
        assert pool_bytes(daemon) <= BUDGET
    faulty_fs.tell("release")
    client.flush()  # raises nothing: those that were accepted land, the others have been told
    assert 0 < len(rejected) < SAVES
    saves = listed(daemon)
    for number, path in enumerate(paths):
        if path not in rejected:
            check_content(client, path, number)
            continue
        assert rejected[path].reason == "STAGING_FULL"
        assert "larger --staging-budget" in str(rejected[path])
        save = saves[str(path)]
        assert (save.state, reason_of(save.error)) == (pb.Save.FAILED, "STAGING_FULL")
        assert not path.exists()


def test_supersede(daemon, tmp_path):
    client = daemon.client(on_full="supersede")
    path = tmp_path / "last.ckpt"
    client.save(state(-1), path).result()
    # Held, so that none is begun before the budget is used up.
    session, held = hold(daemon, path)
    saves = [client.save(state(number), path) for number in range(SAVES)]
    session.call("EndLoad", held, WAIT_SECONDS)
    client.flush()  # one that gave way is no failure
    check_content(client, path, SAVES - 1)
    assert pool_bytes(daemon) <= BUDGET
    gave_way = [save for save in saves if save.state == "SUPERSEDED"]
    assert all(save.state == "SUCCEEDED" for save in saves if save not in gave_way)
    assert gave_way and saves[-1] not in gave_way
    names = [save.name for save in saves]
    for save in gave_way:
        with pytest.raises(ckptd.SaveError) as caught:
            save.result()
        assert caught.value.reason == "SUPERSEDED"
        by = [name for name in names if f"gave way to {name} " in str(caught.value)]
        assert len(by) == 1 and names.index(by[0]) > names.index(save.name)
