"""A short run of the chaos: each kind is killed at least once, and nothing comes of it."""

from __future__ import annotations

import pytest

from tests.cluster.chaos.outcome import WANTED
from tests.cluster.chaos.run import run_chaos
from tests.cluster.chaos.strikes import STAGES
from tests.servers.ceph import CephCluster


@pytest.mark.ray
@pytest.mark.ceph
@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_wrong_whatever_dies(ceph_cluster: CephCluster) -> None:
    chaos = run_chaos(ceph_cluster, minutes=1.5, seed=1, slides=24)
    assert chaos.ratios == dict.fromkeys(WANTED, 0), chaos.table
    assert chaos.verdict.rows_found == chaos.verdict.rows_expected > 0
    assert chaos.killed.keys() & STAGES.keys()
    assert chaos.killed["raylets"] >= 1
    assert chaos.killed["gateways"] >= 1
    assert chaos.driver["killed"] >= 1
    assert chaos.faults["error_503"] > 0
    assert chaos.looks > 0
