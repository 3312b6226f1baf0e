"""The daemons of the Python tests, for trainers that are killed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "python"))

_spec = importlib.util.spec_from_file_location(
    "ckptd_python_conftest", REPO / "tests" / "python" / "conftest.py"
)
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

make_daemon = _fixtures.make_daemon
