"""Many saves, and clients that come and go: nothing grows, in the daemon or in them.

CKPTD_SOAK_SAVES   small saves; 500 if unset
CKPTD_SOAK_LARGE   saves of 50 MB; 18 if unset
CKPTD_SOAK_KILLS   of the daemon, among the small ones and again among the large; 3 if unset
CKPTD_SEED         of what is saved, loaded and removed; fixed if unset
"""

from __future__ import annotations

import dataclasses
import os
from typing import Dict, Tuple

import soak
from measure import table

LENGTH = soak.Length(
    saves=int(os.environ.get("CKPTD_SOAK_SAVES", "500")),
    large=int(os.environ.get("CKPTD_SOAK_LARGE", "18")),
    kills=int(os.environ.get("CKPTD_SOAK_KILLS", "3")),
    batches=9,
)
SEED = int(os.environ.get("CKPTD_SEED", "20261124"))


def test_nothing_grows(tmp_path):
    """What leaks does so each time, and twice as much in twice the time. What malloc or gRPC just
    happened to keep in so short a soak is another thing each time."""
    growing = soak_once(LENGTH, SEED, tmp_path / "first")
    if growing:
        longer = dataclasses.replace(LENGTH, saves=2 * LENGTH.saves, large=2 * LENGTH.large)
        again = soak_once(longer, SEED + 1, tmp_path / "again")
        growing = {key: how for key, how in again.items() if key in growing}
    assert not growing


def soak_once(length, seed, folder) -> Dict[Tuple[str, str], str]:
    """What has grown, and how, by phase and quantity."""
    print(f"CKPTD_SEED={seed}")
    folder.mkdir()
    done = soak.run(length, seed, folder)
    print(table(done.rows))
    assert done.done["kills"] == 2 * length.kills
    assert done.done["fork killed"] > 0
    assert done.done["fork left"] > 0
    return {(row.phase, row.quantity.name): str(row) for row in done.rows if not row.flat}
