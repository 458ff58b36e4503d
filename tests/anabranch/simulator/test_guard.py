"""A guard in the whole system: a poisonous update undoes what was learnt, or is withheld; and no storm loses any."""

from collections import Counter
from dataclasses import replace

import pytest

from anabranch.simulator.experiment import load_experiment
from anabranch.simulator.twin import Twin
from tests.chaos.storms import CHAOS, EXPERIMENTS, FIRST_SEED

GUARD = load_experiment(EXPERIMENTS / "guard.toml")
STORMS = {
    "held-out": {"margin": "0.0", "against": "3"},
    "canary": {"margin": "0.0", "canary": "0.25", "reports": "1", "canary_s": "30", "in_doubt": "withhold"},
    "slow": {"margin": "0.02", "measure_s": "1", "canary": "0.5", "canary_s": "60"},  # the word comes late
}


def values_of(twin: Twin) -> list[float]:
    """What the published versions measured since the attack began."""
    rows = [row for row in twin.recorder.rows if row.value is not None and row.t_s > GUARD.fleet.late_s]
    return [row.value for row in rows if row.value is not None]


def test_a_guard_keeps_what_was_learnt():
    """With it no published version falls; without it the metric is nothing, and stays there for minutes."""
    guarded, open_to_all = Twin(GUARD, 0), Twin(replace(GUARD, plan={**GUARD.plan, "guard": None}), 0)
    for twin in (guarded, open_to_all):
        twin.run()
        assert twin.checker.violations == []
    assert min(values_of(guarded)) > 0.95
    assert guarded.recorder.quarantined >= 5
    assert min(values_of(open_to_all)) < 0.01
    assert values_of(open_to_all)[-1] < 0.1


@pytest.mark.parametrize("guard", STORMS)
def test_a_guarded_fleet_stands_storms(guard):
    """Every invariant under every fault: judged once, set aside for one version, announced only where it may be."""
    plan = {**CHAOS.plan, "guard": STORMS[guard]}
    experiment = replace(CHAOS, plan=plan, gateway=replace(CHAOS.gateway, measure_ms=2000.0))
    checks: Counter[str] = Counter()
    withheld = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 12):
        twin = Twin(experiment, seed)
        twin.run()
        assert twin.checker.violations == [], f"seed {seed}"
        checks.update(twin.checker.checks)
        withheld += sum(state == "withheld" for state in twin.checker.states.values())
    assert withheld
    assert checks["only what passed is published"]
    assert checks["judged once"] or guard == "held-out"
