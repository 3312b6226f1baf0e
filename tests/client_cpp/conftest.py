"""The C++ client's programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import BUILD, REPO

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
