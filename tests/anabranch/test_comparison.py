"""The comparison that federation is held against: fair budgets, and a file that is of this model."""

import json
from hashlib import sha256
from importlib.resources import files

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import SPEEDS, load_fan
from anabranch.demo import comparison
from anabranch.demo.comparison import BASELINES, Judge, compare_live, compare_quick, train_alike
from broker_aggregator.export import float_model
from edge_agent.sources import Examples
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Plan

DATA = (files("anabranch") / "data" / "fan_vibration.bundle").read_bytes()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The demo's model."""
    return Bundle.read(DATA)


@pytest.fixture(scope="module")
def plan(bundle) -> Plan:
    """A plan with the bundle's own settings."""
    return Plan(
        task="t",
        revision=1,
        state="running",
        bundle_sha256=bundle.sha256,
        bundle_size=len(DATA),
        fingerprint=bundle.layout.fingerprint,
    )


def test_budgets_are_the_federations(bundle, plan):
    """Pooled gets all steps, each model alone the average device's share, and everyone is judged on all fans."""
    speeds = (20, 60, 100)
    against = compare_live(bundle, plan, speeds, steps=100, seed=0)
    assert (against.pooled_steps, against.alone_steps) == (100, 33)
    assert tuple(against.alone) == speeds
    assert all(tuple(on) == speeds for on in (against.pooled, *against.alone.values()))
    assert against.pooled_mean > against.alone_mean
    assert against.alone_own_mean > against.alone_mean


def test_the_same_seed_gives_the_same_comparison(bundle, plan):
    """Training and shuffling are drawn from the seed alone, also on two threads."""
    first, again, other = (compare_live(bundle, plan, (20, 60), 40, seed) for seed in (0, 0, 1))
    assert first == again
    examples = Examples(*load_fan(20).train)
    versions = [train_alike(bundle, plan, examples, 20, seed, lambda: False) for seed in (0, 0, 1)]
    assert np.array_equal(versions[0], versions[1])
    assert not np.array_equal(versions[0], versions[2])
    assert other.source != first.source


def test_the_plans_settings_are_used(bundle, plan):
    """With a learning rate of zero, and no decay, nothing is learnt."""
    frozen = Plan(**{**plan.__dict__, "hyper": {"learning_rate": "0"}})
    examples = Examples(*load_fan(20).train)
    version = train_alike(bundle, frozen, examples, 5, 0, lambda: False)
    size = bundle.layout.num_parameters
    assert np.array_equal(version[:size], bundle.initial[:size])
    assert not np.array_equal(train_alike(bundle, plan, examples, 5, 0, lambda: False)[:size], bundle.initial[:size])


def test_training_can_be_given_up(bundle, plan):
    """What `should_pause` raises ends the training: Ctrl-C does not wait for a budget."""

    def give_up() -> bool:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_alike(bundle, plan, Examples(*load_fan(20).train), 10**9, 0, give_up)


def test_a_judge_measures_the_model_that_it_is_given(bundle):
    """int8 unless told; a fresh model is no better than chance."""
    judge = Judge(bundle, SPEEDS)
    for accuracy in (judge.accuracy(bundle.initial), judge.accuracy(bundle.initial, float_model)):
        assert tuple(accuracy) == SPEEDS
        assert np.mean(list(accuracy.values())) < 0.6


def test_the_file_for_quick_is_of_the_bundle_that_ships(bundle):
    """After a new bundle: `python benchmarks/fan_baselines.py`."""
    page = json.loads(BASELINES.read_text())
    assert page["bundle_sha256"] == sha256(DATA).hexdigest()
    assert "benchmarks/fan_baselines.py" in page["made_by"]
    quick = compare_quick(bundle)
    assert set(quick.pooled) == set(quick.alone) == set(SPEEDS)
    assert "fan_baselines.py" in quick.source
    assert "[0, 1, 2, 3, 4]" in quick.source
    assert quick.pooled_mean > 0.95 > quick.alone_mean


@pytest.mark.parametrize("content", [None, "{", "[]", '{"pooled": {}}', '{"pooled": [1]}', '{"bundle_sha256": "0"}'])
def test_a_missing_or_broken_file_is_a_clear_error(bundle, tmp_path, monkeypatch, content):
    """It names the script that makes it."""
    file = tmp_path / "fan_baselines.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(comparison, "BASELINES", file)
    with pytest.raises(ConfigError, match=r"benchmarks/fan_baselines\.py"):
        compare_quick(bundle)
