"""Strategies with two processes, on the CPU with gloo: subprocesses, spawned and forked ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import REPO

FILES = ["epoch=1-step=4.ckpt", "last.ckpt"]


@pytest.fixture
def run_ranks(daemon, tmp_path):
    """Runs the program with some strategies; gives the folder of each."""

    def run(*strategies):
        result = subprocess.run(
            [sys.executable, Path(__file__).parent / "lightning_ranks.py", tmp_path, *strategies],
            env={
                **os.environ,
                "PYTHONPATH": f"{REPO / 'client' / 'python'}:{Path(__file__).parent}",
                "CKPTD_ADDRESS": daemon.address,
                "CKPTD_JOB": tmp_path.name,
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return [tmp_path / strategy for strategy in strategies]

    return run


def found(folder, rank):
    return json.loads((folder / f"found-{rank}").read_text())


def check(folder, rank):
    """What every strategy leaves, as that rank sees it."""
    here = found(folder, rank)
    assert (here["files"], here["best"], here["step"]) == (FILES, FILES[0], 4)
    assert here["same"]
    pids = {(folder / f"rank-{rank}").read_text() for rank in range(2)}
    assert len(pids) == 2
    return here


def test_subprocesses(run_ranks):
    (folder,) = run_ranks("ddp")
    assert [check(folder, rank)["saves"] for rank in range(2)] == [4, 0]
    assert sorted(os.listdir(folder)) == ["checkpoints", "found-0", "found-1", "rank-0", "rank-1"]


@pytest.mark.parametrize("strategy", ["ddp-own", "ddp_spawn-own"])
def test_checkpoint_io_of_ones_own(run_ranks, strategy):
    (folder,) = run_ranks(strategy)
    ranks = 2 if strategy == "ddp-own" else 1
    saves = [check(folder, rank)["saves"] for rank in range(ranks)]
    assert saves == ([4, 0] if ranks == 2 else [0])


def test_spawned_and_forked(run_ranks):
    for folder in run_ranks("ddp_fork", "ddp_spawn"):
        # The parent trained nothing, and has the weights by way of a checkpoint that is gone again.
        here = check(folder, 0)
        assert here["saves"] == 0
        assert str(here["pid"]) not in {(folder / f"rank-{rank}").read_text() for rank in range(2)}
        assert sorted(os.listdir(folder)) == ["checkpoints", "found-0", "rank-0", "rank-1"]
