"""Starts real daemons for the tests, and finds the package in the source tree."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "python"))

from harness import REPO, Daemon  # noqa: E402 - found through that path
from lightning_models import PACKAGES  # noqa: E402

import ckptd  # noqa: E402 - found through the harness


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    """One daemon for all tests that do it no harm."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), "--staging-budget", "1GiB")
    yield daemon
    exit_code = daemon.stop()
    daemon.clean_up()
    assert exit_code == 0, daemon.log.read_text()


@pytest.fixture
def make_daemon(tmp_path):
    """Makes daemons with flags of the test's choice, one folder each."""
    daemons = []

    def make(*flags: str, **options) -> Daemon:
        folder = tmp_path / f"daemon-{len(daemons)}"
        folder.mkdir()
        daemons.append(Daemon(folder, *flags, **options))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.clean_up()


@pytest.fixture
def client(daemon):
    """A client of the common daemon, of a job of its own."""
    client = daemon.client(job=f"test-{uuid.uuid4().hex[:8]}")
    yield client
    with contextlib.suppress(ckptd.CheckpointError):
        client.flush()
    client.close()


@pytest.fixture(params=PACKAGES)
def pl(request):
    """Each of Lightning's two packages."""
    return importlib.import_module(request.param)


@pytest.fixture
def plugin(client):
    """A plugin of the common daemon."""
    from ckptd.lightning import SidecarCheckpointIO  # which is slow

    return SidecarCheckpointIO(client=client)


@pytest.fixture
def run_python(daemon):
    """Runs a program in a new interpreter with the package and the common daemon at hand."""

    def run(program: str, *arguments, check: bool = True, **environment):
        env = {
            **os.environ,
            "PYTHONPATH": str(REPO / "client" / "python"),
            "CKPTD_ADDRESS": daemon.address,
            **{name: str(value) for name, value in environment.items()},
        }
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run
