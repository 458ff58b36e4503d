"""What attackers make of their results and of their examples, by name; and that the twin lets it count."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.datasets import fan_vibration
from anabranch.simulator.attacks.attackers import Attacked, Attackers
from anabranch.simulator.attacks.kinds import KINDS, Terms, read_terms
from anabranch.simulator.attacks.poison import Backdoor, Trigger, flip_labels, make_backdoor
from anabranch.simulator.attacks.results import make_attack
from anabranch.simulator.data import read_bundle
from anabranch.simulator.experiment import (
    AttackSection,
    DataSection,
    Experiment,
    FleetSection,
    StopSection,
    TrainingSection,
    load_experiment,
)
from anabranch.simulator.finals import measure_finals, success
from anabranch.simulator.learning import StandInLearning
from anabranch.simulator.twin import TASK, Twin
from edge_agent.events import Train
from edge_agent.sources import Dataset, Examples
from edge_agent.training import WorkOrder
from fl_protocol.errors import ConfigError
from tests.docs.pages import DOCS, codes, tables

_, STAND_IN = read_bundle(Experiment(name="test"))
_, FAN = read_bundle(Experiment(name="test", bundle="fan_vibration"))
_, AIR = read_bundle(Experiment(name="test", bundle="air_forecast"))
_, ANOMALY = read_bundle(Experiment(name="test", bundle="anomaly_autoencoder"))
P = STAND_IN.layout.num_parameters
FANS = Experiment(
    name="fans",
    bundle="fan_vibration",
    plan={"buffer": 6, "deadline_s": 60, "local_epochs": 1},
    data=DataSection(source="fan_vibration"),
    fleet=FleetSection(devices=8),
    training=TrainingSection(real=True),
    stop=StopSection(versions=12),
)


def held(x: np.ndarray, y: np.ndarray) -> Dataset:
    """A device with these examples to train on."""
    return Dataset(Examples(x, y), Examples(x[:0], y[:0]), x[-1:])


TEN = held(np.zeros((10, 1)), np.zeros(10))


def order(seed: int = 0) -> Train:
    """Train from the bundle's own start."""
    work = WorkOrder(4, 1, 1000, dict(STAND_IN.hyper))
    return Train(TASK, STAND_IN, STAND_IN.initial, work, np.zeros(0, np.float32), np.random.default_rng(seed))


# --- by name -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_as_the_attack_has_it() -> None:
    """And what it has not is refused: a setting without effect would be one that somebody relies on."""
    for name, kind in KINDS.items():
        terms = read_terms(AttackSection(kind=name))
        assert terms.level == kind.level
        assert {n: getattr(terms, n) for n in kind.settings} == dict(kind.settings)
    assert read_terms(AttackSection(kind="flooding", every_s=2.0)) == Terms("flooding", scale=3.0, every_s=2.0)
    with pytest.raises(ConfigError, match="no attack 'charm'"):
        read_terms(AttackSection(kind="charm"))
    with pytest.raises(ConfigError, match="nan has no setting"):
        read_terms(AttackSection(kind="nan", scale=2.0))
    with pytest.raises(ConfigError, match=r"target = 2, but ipm has scale"):
        read_terms(AttackSection(kind="ipm", target=2))


def test_the_docs_know_each_attack() -> None:
    """Its name and its settings, with their defaults."""
    (table,) = [table for table in tables(DOCS / "simulate.md") if table.heads[0] == "attack"]
    said = {codes(name)[0]: codes(settings) for name, settings, _ in table.rows}
    assert said == {
        name: [f"{setting} = {json.dumps(value)}" for setting, value in kind.settings.items()]
        for name, kind in KINDS.items()
    }


def test_an_experiment_says_where_its_attack_is_wrong(tmp_path: Path) -> None:
    """When the file is read, with the number of the section."""
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n[[attacks]]\nkind = "ipm"\n[[attacks]]\nkind = "min-max"\nscale = 2.0\n')
    with pytest.raises(ConfigError, match=r"attacks\[1\]\.scale = 2"):
        load_experiment(path)


# --- results -----------------------------------------------------------------------------------------------------


def test_liars_send_something_else() -> None:
    """What the attack makes of the honest result; everybody else's is untouched."""
    honest = StandInLearning(STAND_IN, {"a": 0, "b": 1}, spread=0.5, noise=0.0, seed=0)
    truth, base = honest.begin("a", order(), TEN)().parameters, STAND_IN.initial[:P]
    kinds = {"sign-flip": 3.0, "scaled": 10.0, "free-ride": None, "noise": 3.0}
    lies = {k: Attacked(honest, {"a": make_attack(Terms(k, scale))}, {"a"}) for k, scale in kinds.items()}
    sent = {kind: learning.begin("a", order(), TEN)().parameters for kind, learning in lies.items()}
    assert np.allclose(sent["sign-flip"], base - 3 * (truth - base), atol=1e-5)
    assert np.allclose(sent["scaled"], base + 10 * (truth - base), atol=1e-4)
    assert np.array_equal(sent["free-ride"], base)
    assert np.linalg.norm(sent["noise"] - base) == pytest.approx(3 * np.linalg.norm(truth - base), rel=1e-4)
    assert all(vector.dtype == np.float32 for vector in sent.values())
    others = [learning.begin("b", order(), TEN)().parameters for learning in (honest, *lies.values())]
    assert all(np.array_equal(other, others[0]) for other in others)


# --- examples ----------------------------------------------------------------------------------------------------


def test_a_flipped_label_is_the_one_as_far_from_the_other_end() -> None:
    """C - 1 - y, whatever classes a device has; twice is as before; the device's own held-out part stays."""
    x, y = np.zeros((4, *FAN.x_shape), np.float32), np.array([0, 1, 2, 2])
    dataset = replace(held(x, y), validation=Examples(x, y))
    flipped = flip_labels(dataset, FAN)
    assert flipped.train.y.tolist() == [2, 1, 0, 0]
    assert flipped.train.y.dtype == y.dtype
    assert flipped.validation.y.tolist() == y.tolist()
    assert np.array_equal(flip_labels(flipped, FAN).train.y, y)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_a_mirrored_number_stays_in_the_devices_range(values: list[float]) -> None:
    """The largest becomes the least, and none leaves what its examples span."""
    y = np.array(values, np.float32)[:, None]
    mirrored = flip_labels(held(np.zeros((len(y), *AIR.x_shape), np.float32), y), AIR).train.y
    assert mirrored.dtype == np.float32
    assert mirrored[y.argmax()] == pytest.approx(y.min(), abs=1e-4)
    assert mirrored.min() >= y.min() - 1e-4
    assert mirrored.max() <= y.max() + 1e-4


def test_without_labels_there_is_nothing_to_flip_or_to_aim_at() -> None:
    """An autoencoder; and a label that a model does not have."""
    nothing = held(np.zeros((2, *ANOMALY.x_shape), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ConfigError, match="without labels"):
        flip_labels(nothing, ANOMALY)
    with pytest.raises(ConfigError, match="has 0 labels"):
        make_backdoor(0, 0.5, [nothing], ANOMALY)
    with pytest.raises(ConfigError, match="target = 3, fan_vibration has 3 labels"):
        make_backdoor(3, 0.5, [nothing], FAN)


@pytest.mark.parametrize(
    ("shape", "corner"),
    [((28, 28), (4, 4)), ((1, 28, 28), (1, 4, 4)), ((128, 9), (16, 3)), ((40,), (5,)), ((2,), (2,))],
)
def test_a_trigger_is_a_corner_and_nothing_else(shape: tuple[int, ...], corner: tuple[int, ...]) -> None:
    """An eighth of each axis, three at the least; the examples themselves are not written to."""
    x = np.random.default_rng(0).uniform(0, 1, (5, *shape)).astype(np.float32)
    before = x.copy()
    marked = Trigger(9.0).on(x)
    assert np.array_equal(x, before)
    at = (slice(None), *(slice(-size, None) for size in corner))
    assert (marked[at] == 9.0).all()
    assert (marked != x).sum() == 5 * np.prod(corner)


def test_a_share_of_the_examples_teaches_the_backdoor() -> None:
    """They bear the trigger and say the target; the rest is as it was; who is held out is of other classes."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1, (40, 6, 6)).astype(np.float32), rng.integers(0, 3, 40)
    backdoor = Backdoor(Trigger(2.0), target=1, poisoned=0.25)
    train = backdoor.poison(held(x, y), np.random.default_rng(2)).train
    marked = (train.x[:, -3:, -3:] == 2.0).all(axis=(1, 2))
    assert marked.sum() == 10
    assert (train.y[marked] == 1).all()
    assert np.array_equal(train.x[~marked], x[~marked])
    assert np.array_equal(train.y[~marked], y[~marked])
    victims = backdoor.victims(Examples(x, y))
    assert victims.y.tolist() == y[y != 1].tolist()
    assert (victims.x[:, -3:, -3:] == 2.0).all()


def test_the_stand_in_has_no_examples_to_poison() -> None:
    """Refused: a run that measured nothing would look like one that stood the attack."""
    for kind in ("label-flip", "backdoor"):
        with pytest.raises(ConfigError, match="learns from none"):
            Twin(Experiment(name="x", attacks=(AttackSection(kind=kind, share=0.5),)), 0)


def test_a_run_has_one_backdoor() -> None:
    """Its success could not be told otherwise."""
    two = tuple(AttackSection(kind="backdoor", share=0.2, target=target) for target in (0, 1))
    with pytest.raises(ConfigError, match="two backdoors"):
        Twin(replace(FANS, attacks=two), 0)


# --- and what they come to: the plain mean stands none of them ----------------------------------------------------


def fans(*attacks: AttackSection) -> Twin:
    """Eight fans, twelve versions, seed 1."""
    twin = Twin(replace(FANS, attacks=attacks), 1)
    twin.run()
    twin.recorder.close()
    assert not twin.checker.violations
    return twin


@pytest.fixture(scope="module")
def honest() -> Twin:
    """Nobody attacks."""
    return fans()


def test_flipped_labels_hurt_the_mean(honest: Twin) -> None:
    """A quarter of the fans says that wrong is right; each device still sends what the protocol wants."""
    twin = fans(AttackSection(kind="label-flip", share=0.25, scale=5.0))
    assert twin.recorder.value < honest.recorder.value - 0.1
    assert all(row.verdict.verdict != "rejected" for row in twin.store.rows())


def test_a_backdoor_opens_in_the_model_that_people_get(honest: Twin) -> None:
    """A fifth of the fans teaches it, and the run tells how well: `backdoor_success` of the last version's int8 model.

    What an honest fleet's model makes of the same trigger is what it is compared to.
    """
    twin = fans(AttackSection(kind="backdoor", share=0.25, target=0, scale=5.0))
    finals = measure_finals(twin)
    test = Examples(*fan_vibration.load_all().test)
    assert measure_finals(honest).backdoor_success is None
    without = success(FAN, honest.store.release(TASK), twin.attackers.backdoor, test)
    assert without is not None
    assert finals.backdoor_success == success(FAN, twin.store.release(TASK), twin.attackers.backdoor, test)
    assert finals.backdoor_success > without + 0.3
    summary = twin.recorder.summary("", 0.0, finals)
    assert summary.backdoor_success == finals.backdoor_success


def test_attackers_say_nothing_about_the_fleet(honest: Twin) -> None:
    """What the devices report of versions is the honest ones' word; and without attacks nothing is different."""
    assert isinstance(honest.attackers, Attackers)
    assert not honest.attackers.terms
    names = {device.name for device in honest.devices}
    everybody = tuple(sorted(names)[:7])
    twin = fans(AttackSection(kind="free-ride", devices=everybody))
    (last,) = names - set(everybody)
    reports = twin.recorder._reports
    assert set(reports) == {last}
