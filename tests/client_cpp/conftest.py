"""The C++ client's programs, and the daemons of the Python tests for them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "python"))

_spec = importlib.util.spec_from_file_location(
    "ckptd_python_conftest", REPO / "tests" / "python" / "conftest.py"
)
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

from harness import BUILD  # noqa: E402

daemon = _fixtures.daemon

#: Builds of the client: against the system's LibTorch, and against that of the torch wheel.
BUILDS = {
    "system": BUILD,
    "wheel": Path(os.environ.get("CKPTD_WHEEL_BUILD_DIR", REPO / "build-wheel")),
}


@pytest.fixture(params=BUILDS)
def build(request) -> Path:
    """The folder of each build of the client in turn."""
    folder = BUILDS[request.param]
    if request.param == "wheel" and not (folder / "bin").exists():
        pytest.skip(f"{folder} is not built: scripts/test does that")
    return folder


@pytest.fixture
def run(daemon):
    """Runs a program to its end with the common daemon at hand."""

    def run(program: Path, *arguments, check: bool = True) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [program, *map(str, arguments)],
            env={**os.environ, "CKPTD_ADDRESS": daemon.address},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run
