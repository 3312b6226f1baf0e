"""What a session leaves when it is closed."""

from __future__ import annotations

import os

import pytest
import torch
from harness import wait_until

ROUNDS = 10


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_sessions_that_are_closed_leave_no_connection(make_daemon, tmp_path, transport):
    daemon = make_daemon()

    def visit() -> None:
        client = daemon.client(transport=transport)
        client.save({"a": torch.ones(10)}, tmp_path / "a.ckpt").result()
        client.load(tmp_path / "a.ckpt")
        client.close()

    visit()
    ours, theirs = descriptors(os.getpid()), descriptors(daemon.process.pid)
    for _ in range(ROUNDS):
        visit()
    assert descriptors(os.getpid()) < ours + ROUNDS // 2
    wait_until(
        lambda: descriptors(daemon.process.pid) < theirs + ROUNDS // 2,
        "the daemon to close what its clients have closed",
    )
