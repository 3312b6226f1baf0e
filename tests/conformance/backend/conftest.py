"""One daemon for each backend that the suite is run over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import steps as counting  # noqa: E402 - found through that path
from tested import Backend, subjects  # noqa: E402


@pytest.fixture(scope="session")
def steps_library(tmp_path_factory):
    """What is preloaded into the processes that write."""
    return counting.build(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module", params=subjects(), ids=str)
def backend(request, tmp_path_factory, steps_library):
    """A backend, in a daemon of its own."""
    folder = tmp_path_factory.mktemp(request.param.name)
    steps = counting.Steps(steps_library, folder / "steps")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in steps.environment.items():
            patch.setenv(name, value)  # for hosts of Python, which have this process's environment
        made = Backend(request.param, folder, steps)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def let_go(backend):
    """Of what a test that has failed holds."""
    yield
    backend.steps.release()


@pytest.fixture
def folder(tmp_path):
    """Holds checkpoints and nothing else."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder
