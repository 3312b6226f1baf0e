"""The daemons of the Python tests, and file systems that fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "python"))
sys.path.insert(0, str(Path(__file__).parent))

_spec = importlib.util.spec_from_file_location(
    "ckptd_python_conftest", REPO / "tests" / "python" / "conftest.py"
)
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

from faulty import FaultyFs, why_not  # noqa: E402 - found through that path

make_daemon = _fixtures.make_daemon


@pytest.fixture
def faulty_fs(tmp_path):
    """A file system that does as the test tells it."""
    if reason := why_not():
        pytest.skip(reason)
    faulty = FaultyFs(tmp_path)
    yield faulty
    faulty.clean_up()
