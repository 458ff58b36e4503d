"""What training comes to: a stand-in whose optimum is known, or the bundle's own graphs."""

import numpy as np
import pytest

from anabranch.datasets import fan_vibration
from anabranch.simulator.cache import ResultCache
from anabranch.simulator.data import read_bundle
from anabranch.simulator.experiment import Experiment
from anabranch.simulator.learning import OnnxLearning, StandInLearning, steps_of
from edge_agent.events import Train
from edge_agent.sources import Dataset, Examples
from edge_agent.training import WorkOrder
from fl_protocol.bundle import Bundle

_, STAND_IN = read_bundle(Experiment(name="test"))
_, FAN = read_bundle(Experiment(name="test", bundle="fan_vibration"))
P = STAND_IN.layout.num_parameters
TEN = Dataset(Examples(np.zeros((10, 1)), np.zeros(10)), Examples(np.zeros((0, 1)), np.zeros(0)), np.zeros((1, 1)))


def order(base=STAND_IN.initial, epochs: int = 1, most: int = 1000, seed: int = 0, bundle: Bundle = STAND_IN) -> Train:
    """Train from `base`."""
    work = WorkOrder(4, epochs, most, dict(bundle.hyper))
    return Train("task", bundle, base, work, np.zeros(0, np.float32), np.random.default_rng(seed))


def stand_in(devices: int = 4, noise: float = 0.0, seed: int = 0) -> StandInLearning:
    """A fleet of devices a, b, c, ..."""
    names = {chr(ord("a") + number): number for number in range(devices)}
    return StandInLearning(STAND_IN, names, spread=0.5, noise=noise, seed=seed)


def test_a_step_is_a_batch() -> None:
    """The last one may be small, and the order bounds them."""
    assert steps_of(order(epochs=3).order, 10) == 9
    assert steps_of(order(epochs=3, most=5).order, 10) == 5


def test_the_fleets_optimum_is_known() -> None:
    """The mean of what the devices pull to: nothing is left there, and it measures 1; the start measures 1/e."""
    learning = stand_in()
    ends = [learning.begin(name, order(epochs=10**6, most=10**6), TEN)().parameters for name in "abcd"]
    optimum = np.concatenate([np.mean(ends, axis=0, dtype=np.float32), STAND_IN.initial[P:]])
    loss, value = learning.measure(optimum)
    assert loss == pytest.approx(0, abs=1e-6)
    assert value == pytest.approx(1)
    assert learning.measure(STAND_IN.initial)[1] == pytest.approx(np.exp(-1))


def test_more_steps_come_closer_to_a_devices_own_point() -> None:
    """Which differs between devices; noise is drawn from the order's generator, so the same order gives the same."""
    learning = stand_in(noise=0.01)
    end = {name: learning.begin(name, order(epochs=10**6, most=10**6), TEN)().parameters for name in "ab"}
    off = [np.linalg.norm(learning.begin("a", order(epochs=n), TEN)().parameters - end["a"]) for n in (1, 3, 10)]
    assert off == sorted(off, reverse=True)
    assert np.linalg.norm(end["a"] - end["b"]) > 1
    first, again, other = (learning.begin("a", order(seed=seed), TEN)() for seed in (1, 1, 2))
    assert np.array_equal(first.parameters, again.parameters)
    assert not np.array_equal(first.parameters, other.parameters)
    assert (first.num_examples, first.local_steps) == (10, 3)


def test_another_seed_is_another_problem() -> None:
    """So that a result over seeds is one over problems."""
    one, other = (stand_in(seed=seed).begin("a", order(epochs=99), TEN)().parameters for seed in (0, 1))
    assert not np.allclose(one, other, atol=0.1)


def test_real_training_may_come_from_a_cache(tmp_path, monkeypatch) -> None:
    """Of what its bits depend on: base, examples, order and generator. What is there is the same bits, not trained."""
    split = fan_vibration.load_fan(fan_vibration.SPEEDS[0])
    examples = Examples(*split.train)[:64]
    dataset = Dataset(examples, examples[:0], examples.x[-1:])
    orders = [lambda: order(FAN.initial, bundle=FAN), lambda: order(FAN.initial, bundle=FAN, seed=1)]
    learning = OnnxLearning(FAN, None, cache=ResultCache(tmp_path))
    trained = [learning.begin("a", make(), dataset)() for make in orders]
    assert not np.array_equal(trained[0].parameters, trained[1].parameters)
    without = OnnxLearning(FAN, None).begin("a", orders[0](), dataset)()

    again = OnnxLearning(FAN, None, cache=ResultCache(tmp_path))
    monkeypatch.setattr(again, "_compute", None)
    kept = [again.begin("another", make(), dataset)() for make in orders]
    for one, other in (*zip(trained, kept, strict=True), (trained[0], without)):
        assert np.array_equal(one.parameters, other.parameters)
        assert np.array_equal(one.statistics, other.statistics)
        assert one.metrics == other.metrics
    with pytest.raises(TypeError):  # it would have to train
        again.begin("a", order(FAN.initial * np.float32(1.01), bundle=FAN), dataset)()
    with pytest.raises(TypeError):
        again.begin("a", orders[0](), Dataset(examples[:60], examples[:0], examples.x[-1:]))()


def test_the_held_out_set_measures() -> None:
    """Mean loss and accuracy, the same for the same vector; without a set nothing, and devices' reports have to do."""
    learning = OnnxLearning(FAN, Examples(*fan_vibration.load_all().validation))
    loss, value = learning.measure(FAN.initial)
    assert loss > 0
    assert 0 <= value <= 1
    assert learning.measure(FAN.initial) == (loss, value)
    assert learning.measure(FAN.initial * np.float32(0.5)) != (loss, value)
    assert OnnxLearning(FAN, None).measure(FAN.initial) is None
