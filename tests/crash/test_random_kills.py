"""The daemon is killed at random moments under load. What was accepted is not lost; no file is torn.

CKPTD_DAEMON_KILLS   how often; 50 if unset
CKPTD_SEED           of the load and of the moments; fixed if unset
"""

from __future__ import annotations

import os

import daemon_kills

KILLS = int(os.environ.get("CKPTD_DAEMON_KILLS", "50"))
SEED = int(os.environ.get("CKPTD_SEED", "20261124"))


def test_a_daemon_that_is_killed_loses_nothing_and_tears_nothing(tmp_path):
    print(f"CKPTD_SEED={SEED}")
    campaign = daemon_kills.run(KILLS, SEED, tmp_path)
    print(campaign.table())
    assert campaign.lost == []
    assert campaign.torn == []
    assert campaign.stray == []
    assert campaign.kills["all"] >= KILLS
    assert campaign.durable == campaign.events["saved"] > KILLS
    for state in ("STAGING", "QUEUED", "PERSISTING", "idle", "restarting"):
        assert campaign.kills[state] > 0, f"none while {state}; nothing is proven of that"
