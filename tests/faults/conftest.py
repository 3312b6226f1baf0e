"""File systems that fail."""

from __future__ import annotations

import pytest
from faulty import FaultyFs, why_not


@pytest.fixture
def faulty_fs(tmp_path):
    """A file system that does as the test tells it."""
    if reason := why_not():
        pytest.skip(reason)
    faulty = FaultyFs(tmp_path)
    yield faulty
    faulty.clean_up()
