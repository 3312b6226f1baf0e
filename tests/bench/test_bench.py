"""That the benchmark works: each row is there, and what is no snapshot is seen."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from harness import BUILD, REPO

from ckptd.lightning import SidecarCheckpointIO

BENCH = Path(__file__).parent
sys.path.insert(0, str(BENCH))

import field  # noqa: E402 - found through that path
import rows  # noqa: E402
import settings  # noqa: E402
import state  # noqa: E402
import subjects  # noqa: E402


def test_quick_run_has_each_row_and_each_snapshot(tmp_path):
    command = [sys.executable, BENCH / "bench.py", "--quick", "--build", BUILD]
    result = subprocess.run(
        [*command, "--dir", tmp_path, "--out", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(REPO / "client" / "python")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = set(rows.ALL)
    if "overlap" not in inspect.signature(SidecarCheckpointIO).parameters:
        expected.remove("P3")
    assert {goal["id"] for goal in results["goals"]} == expected
    assert all(goal["ratio"] is not None for goal in results["goals"])
    found = {row["name"]: row for row in results["subjects"]}
    for name in (subjects.OURS, "torch.save + fsync"):
        assert found[name]["file"] == state.SNAPSHOT
        assert found[name]["back_to_back"] == [state.SNAPSHOT] * field.BACK_TO_BACK
    assert results["micro"]
    assert "| P4 |" in (tmp_path / "out" / "results.md").read_text()
    xml.etree.ElementTree.parse(tmp_path / "out" / "plot.svg")


class Late(subjects.TorchSave):
    """Writes what the state is when it is waited for."""

    def save(self, state, path):
        self.pending = [*getattr(self, "pending", []), (state, path)]

    def wait(self):
        for state_dict, path in self.pending:
            super().save(state_dict, path)


class Lossy(subjects.TorchSave):
    """Writes every other checkpoint."""

    def save(self, state, path):
        self.count = getattr(self, "count", 0) + 1
        if self.count % 2:
            super().save(state, path)


@pytest.mark.parametrize(
    "subject, verdict, several",
    [
        (subjects.TorchSave, state.SNAPSHOT, [state.SNAPSHOT] * 2),
        (Late, state.TORN, [state.TORN] * 2),
        (Lossy, state.SNAPSHOT, [state.MISSING, state.SNAPSHOT]),
    ],
)
def test_what_a_subject_writes_is_judged(tmp_path, subject, verdict, several):
    size = 1 << 20
    run = settings.Settings(size, 1, str(tmp_path), str(BUILD), 60, True, str(tmp_path / "log"))
    entrant = field.Entrant(run, subject)
    assert entrant.sample()["verdict"] == verdict
    assert entrant.back_to_back(2)["verdicts"] == several


def test_what_cannot_run_says_why(tmp_path):
    def broken():
        raise ImportError("no such thing")

    run = settings.Settings(1 << 20, 1, str(tmp_path), str(BUILD), 60, True, str(tmp_path / "log"))
    peers = {"broken": (broken, "torch"), "absent": (broken, "no_such_module")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "PEERS", peers)
        found = {row.name: row.as_dict() for row in field.Field(run, list(peers)).run(0.1)}
    assert "ImportError: no such thing" in found["broken"]["why"]
    assert "No module named 'no_such_module'" in found["absent"]["why"]
    assert found[subjects.OURS]["file"] == state.SNAPSHOT
