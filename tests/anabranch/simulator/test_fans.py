"""The fans in the twin: real training, the demo's plan. benchmarks/twin_demo.py holds whole runs to real processes."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from anabranch.datasets.fan_vibration import SPEEDS
from anabranch.demo.folder import PLAN, VERSIONS
from anabranch.simulator.experiment import Experiment, load_experiment
from anabranch.simulator.twin import TASK, Twin
from broker_aggregator.config import decimals

FILE = Path(__file__).parents[3] / "benchmarks" / "experiments" / "fans.toml"


@pytest.fixture(scope="module")
def fans() -> Experiment:
    """The experiment, as it is shipped."""
    return load_experiment(FILE)


def run(experiment: Experiment, seed: int, versions: int, *, threads: int = 2) -> Twin:
    """A run of so many versions that broke no invariant."""
    training = replace(experiment.training, threads=threads)
    twin = Twin(replace(experiment, training=training, stop=replace(experiment.stop, versions=versions)), seed)
    twin.run()
    assert not twin.checker.violations
    assert twin.store.releases(TASK) == list(range(versions + 1))
    return twin


def test_the_plan_is_the_demos(fans: Experiment) -> None:
    """What the demo writes into its task file for the whole fleet stands in fans.toml."""
    demo = {**PLAN, "buffer": len(SPEEDS) // 2, "deadline_s": 15, "stop": {"minutes": 2}}
    assert fans.plan == decimals(demo)
    assert (fans.fleet.devices, fans.stop.versions) == (len(SPEEDS), VERSIONS)


def test_it_learns(fans: Experiment) -> None:
    """The last ten of 40 versions are 10 points better on held-out windows than the first ten; every device is in."""
    twin = run(fans, 1, 40)
    values = [row.value for row in twin.recorder.rows if row.value is not None]
    assert fmean(values[-10:]) > fmean(values[:10]) + 0.10
    assert all(row.counted for row in twin.recorder.devices())


def test_threads_change_nothing_and_seeds_do(fans: Experiment) -> None:
    """Trained on one thread or two, trace and model have the same bits; with another seed, other ones."""
    twins = [run(fans, seed, 6, threads=threads) for seed, threads in ((1, 2), (1, 1), (2, 2))]
    one, same, other = ((twin.trace.sha256, twin.store.release(TASK).sha256) for twin in twins)
    assert one == same
    assert not set(one) & set(other)
