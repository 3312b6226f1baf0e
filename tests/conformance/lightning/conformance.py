"""Runs Lightning's own tests with the stock plugin and with ours, and compares what passes.

usage: conformance.py CHECKOUT RESULTS_FOLDER [MODE...]
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "tests" / "python"))

from harness import Daemon  # noqa: E402 - found through that path

from ckptd.lightning import SidecarCheckpointIO  # noqa: E402 - found through the harness

# Parts of tests/tests_pytorch: what checkpoints, and what checks plugins, Trainers and callbacks.
PARTS = (
    "callbacks",
    "checkpointing",
    "models/test_cpu.py",
    "models/test_hooks.py",
    "models/test_restore.py",
    "plugins",
    "strategies/launchers/test_multiprocessing.py",
    "strategies/test_registry.py",
    "trainer",
    "tuner",
)
SECONDS_A_TEST = 180
# What passes with stock alone, and has to.
EXPLAINED = {
    "checkpointing/test_trainer_checkpoint.py::test_trainer_save_checkpoint_storage_options": (
        "replaces a method of TorchCheckpointIO, and asserts that the Trainer has called that"
    ),
}
# A few pass or fail by chance; what failed is run again, that often.
MORE_TRIES = 2


def run(checkout: Path, results: Path, mode: str, tests: list[str], address: str) -> dict:
    """What swap.py tells of one run."""
    with tempfile.NamedTemporaryFile("w", suffix=".args", dir=results) as arguments:
        arguments.write("\n".join(tests))
        arguments.flush()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                map(str, (checkout / "src", Path(__file__).parent, REPO / "client" / "python"))
            ),
            "CKPTD_ADDRESS": address,
            "CKPTD_CONFORMANCE_MODE": mode,
            "CKPTD_CONFORMANCE_RESULTS": str(results / f"{mode}.json"),
            "PL_RUN_STANDALONE_TESTS": "0",
        }
        with open(results / f"{mode}.log", "a") as log:
            subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "swap", "-q", "-n", str(os.cpu_count())]
                + ["--dist", "worksteal", "--timeout", str(SECONDS_A_TEST), "--tb", "short"]
                + ["--color", "no", "-p", "no:cacheprovider", "-c", checkout / "pyproject.toml"]
                + [f"@{arguments.name}"],
                cwd=checkout / "tests" / "tests_pytorch",
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
            )
    return json.loads((results / f"{mode}.json").read_text())


def ids(outcome: dict, key: str) -> set[str]:
    """Test ids below tests_pytorch, whatever pytest took for its root."""
    return {name.removeprefix("tests/").removeprefix("tests_pytorch/") for name in outcome[key]}


def main() -> int:
    checkout, results = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    known = inspect.signature(SidecarCheckpointIO).parameters
    modes = sys.argv[3:] or ["durable"] + ["at_return"] * ("visible" in known)
    results.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="ckptd-conformance-")))
    try:
        return compare(checkout, results, modes, daemon)
    finally:
        daemon.clean_up()


def compare(checkout: Path, results: Path, modes: list[str], daemon: Daemon) -> int:
    """Runs all modes; returns how many of them lack a test that stock passes, unexplained."""
    parts = os.environ.get("CKPTD_CONFORMANCE_PARTS", "").split() or list(PARTS)
    stock = run(checkout, results, "stock", parts, daemon.address)
    usable = ids(stock, "passed") & ids(stock, "used")
    tests = sorted(usable - EXPLAINED.keys())
    print(f"stock: {len(usable)} tests pass that use the default plugin", flush=True)
    for name in sorted(usable & EXPLAINED.keys()):
        print(f"  not run with ours: {name}, which {EXPLAINED[name]}", flush=True)
    worse = 0
    for mode in modes:
        missing = set(tests)
        for _ in range(1 + MORE_TRIES):
            if missing:
                outcome = run(checkout, results, mode, sorted(missing), daemon.address)
                missing -= ids(outcome, "passed")
        print(f"{mode}: {len(tests) - len(missing)} of {len(tests)} pass", flush=True)
        for name in sorted(missing):
            print(f"  not: {name}", flush=True)
        worse += bool(missing)
    return worse


if __name__ == "__main__":
    sys.exit(main())
