"""The storms that the chaos suites run: benchmarks/experiments/chaos.toml, from seeds that every failure names."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from anabranch.simulator.experiment import Deed, Experiment, load_experiment
from anabranch.simulator.twin import Twin

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks/experiments"
CHAOS_FILE = EXPERIMENTS / "chaos.toml"
CHAOS = load_experiment(CHAOS_FILE)
FIRST_SEED = int(os.environ.get("ANABRANCH_CHAOS_SEED", "0"))  # of all suites; another one tries other schedules


def storm_of(*deeds: Deed, count: tuple[int, int] = (6, 12), calm_s: float = 900.0) -> Experiment:
    """The same fleet under these deeds only, which has less time to recover."""
    return replace(CHAOS, faults=replace(CHAOS.faults, deeds=deeds, count=count, calm_s=calm_s))


class _Found(Exception):  # noqa: N818  # no error: the run has shown what it was to show
    pass


def violations(experiment: Experiment, seed: int, until: str = "", only: Sequence[int] | None = None) -> list[str]:
    """The rules that one run broke; it ends as soon as one says `until`."""
    twin = Twin(experiment, seed, only=only)

    def look(twin: Twin) -> None:
        if until and any(until in violation for violation in twin.checker.violations):
            raise _Found

    with suppress(_Found):
        twin.run(look)
    return twin.checker.violations
