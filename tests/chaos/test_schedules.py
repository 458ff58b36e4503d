"""Hundreds of seeded storms, and every invariant holds in each; `make chaos` runs thousands."""

import pytest

from anabranch.simulator.running import Job, run_job
from tests.chaos.storms import CHAOS_FILE, FIRST_SEED

SEEDS, AT_ONCE = 300, 25
PARTS = [
    pytest.param(range(first, first + AT_ONCE), id=f"seeds {first} to {first + AT_ONCE - 1}")
    for first in range(FIRST_SEED, FIRST_SEED + SEEDS, AT_ONCE)
]


@pytest.mark.parametrize("seeds", PARTS)
def test_every_invariant_holds_under_a_storm(seeds: range) -> None:
    """Whatever fails: no update is lost or counted twice, and the fleet is at work again in time."""
    summaries = [run_job(Job(CHAOS_FILE, seed)) for seed in seeds]
    broken = [f"{s.violations[0]}\n  see it again: {s.command} --trace" for s in summaries if not s.ok]
    assert not broken, "\n".join(broken)
    assert all(sum(summary.checks.values()) > 100 for summary in summaries)  # it looked
    assert sum(summary.counted for summary in summaries) > 10 * len(seeds)  # and there was something to look at
