"""Bugs that were planted in production code, one at a time: the simulator finds each, by its own rule."""

import sys
from contextlib import nullcontext
from unittest.mock import patch

import pytest

from tests.chaos.mutants import gateway
from tests.chaos.mutants.catalogue import MUTANTS, Mutant
from tests.chaos.storms import FIRST_SEED, storm_of, violations

MOST_SEEDS = 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    """Within a few seeds, by the rule that it breaks; the same seeds break nothing in what we ship."""
    for seed in range(FIRST_SEED, FIRST_SEED + MOST_SEEDS):
        with mutant.plant():
            broken = [v for v in violations(mutant.storm, seed, until=mutant.rule) if mutant.rule in v]
        assert violations(mutant.storm, seed) == [], f"seed {seed}, without the planted bug"
        if broken:
            sys.stdout.write(f"{mutant.name}: seed {seed}, {broken[0]}\n")
            return
    pytest.fail(f"{mutant.name} is not found with seeds {FIRST_SEED} to {seed}")


@pytest.mark.parametrize("plant", [gateway.doubled_commit, gateway.repeat_counted_as_new])
def test_the_store_does_not_take_the_gateways_word(plant) -> None:
    """What would count an update twice ends the gateway instead, as long as the store's own guards stand."""
    with patch.object(gateway, "credulous_store", nullcontext), plant():
        broken = violations(storm_of("cut", "lose"), 0, until="fell")
    assert "gateway fell: IntegrityError" in "\n".join(broken)
    assert "counted once" not in "\n".join(broken)
