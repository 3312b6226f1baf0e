"""Many saves, and clients that come and go: nothing grows, in the daemon or in them.

CKPTD_SOAK_SAVES   small saves; 500 if unset
CKPTD_SOAK_LARGE   saves of 50 MB; 18 if unset
CKPTD_SOAK_KILLS   of the daemon, among the small ones and again among the large; 3 if unset
CKPTD_SEED         of what is saved, loaded and removed; fixed if unset
"""

from __future__ import annotations

import os

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
    print(f"CKPTD_SEED={SEED}")
    done = soak.run(LENGTH, SEED, tmp_path)
    print(table(done.rows))
    growing = [(row.phase, row.quantity.name, str(row)) for row in done.rows if not row.flat]
    assert growing == []
    assert done.done["kills"] == 2 * LENGTH.kills
    assert done.done["fork killed"] > 0
    assert done.done["fork left"] > 0
