"""Training and inference on the device, with the real bundle: it learns, it waits, it says what is wrong."""

import time

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_fan
from edge_agent.inference import Predictor, quantize
from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer, TrainingResult, WorkOrder, open_session, run
from fl_protocol.bundle import Bundle
from fl_protocol.errors import Code, ProtocolError
from tests.edge_agent.rig import BUNDLE
from tests.edge_agent.small import HEAD, HEAD_STEP, INITIAL_VERSION, read_small

NOTHING = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def fan() -> Dataset:
    """One fan's examples."""
    splits = load_fan(60)
    return Dataset(Examples(*splits.train), Examples(*splits.validation), splits.test[0][-1:])


def train(dataset: Dataset, *, seed: int = 0, duty_cycle: float = 1.0, **order: object) -> TrainingResult:
    """One local training from the initial version."""
    fields = {"batch_size": 32, "local_epochs": 1, "max_local_steps": 1000, "hyper": BUNDLE.hyper, **order}
    trainer = OnnxTrainer(BUNDLE, duty_cycle=duty_cycle)
    work = WorkOrder(**fields)  # type: ignore[arg-type]
    return trainer.train(BUNDLE.initial, dataset, work, NOTHING, np.random.default_rng(seed), lambda: False)


def test_training_learns_and_says_what_it_did(fan: Dataset) -> None:
    """A few epochs on one fan lower the loss that the next training measures; counts are what was done."""
    result = train(fan, local_epochs=4)
    batches = -(-len(fan.train) // 32)
    assert (result.local_steps, result.num_examples) == (4 * batches, len(fan.train))
    assert result.metrics["validation_examples"] == len(fan.validation)
    learnt = np.concatenate([result.parameters, result.statistics])
    again = OnnxTrainer(BUNDLE).train(
        learnt, fan, WorkOrder(32, 1, 1, BUNDLE.hyper), NOTHING, np.random.default_rng(1), lambda: False
    )
    assert again.metrics["loss"] < 0.8 * result.metrics["loss"]
    assert again.metrics["value"] > result.metrics["value"]
    assert (again.local_steps, again.num_examples) == (1, 32)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fan: Dataset) -> None:
    """Replay is exact on one machine."""
    one, same, other = train(fan, seed=1), train(fan, seed=1), train(fan, seed=2)
    np.testing.assert_array_equal(one.parameters, same.parameters)
    assert not np.array_equal(one.parameters, other.parameters)


def test_an_incomplete_last_batch_is_trained_too(fan: Dataset) -> None:
    """As many examples as there are, none left out."""
    few = Dataset(fan.train[:37], fan.validation[:0], fan.newest)
    result = train(few)
    assert (result.local_steps, result.num_examples) == (2, 37)
    assert set(result.metrics) == {"train_loss"}


def test_a_loss_that_explodes_is_said_to_be_the_plans_fault(fan: Dataset) -> None:
    """E_NAN, with the step at which it happened."""
    with pytest.raises(ProtocolError, match="not finite at step") as caught:
        train(fan, hyper={**BUNDLE.hyper, "learning_rate": 1e30})
    assert caught.value.code == Code.NAN


def test_a_graph_that_does_not_run_is_the_peers_fault() -> None:
    """E_SCHEMA, when it is loaded or when it runs."""
    with pytest.raises(ProtocolError, match="refuses") as caught:
        open_session(b"not a graph", 1)
    assert caught.value.code == Code.SCHEMA
    with pytest.raises(ProtocolError, match="the graph failed"):
        run(open_session(BUNDLE.graph("float"), 1), None, {"x": np.zeros((1, 1, 1), np.float32)})


def test_a_pause_is_waited_out_and_an_exception_abandons(fan: Dataset) -> None:
    """`should_pause` is asked before every step; what it raises ends the training."""

    class EndedError(Exception):
        pass

    asked: list[float] = []

    def pause() -> bool:
        asked.append(time.monotonic())
        if len(asked) > 5:
            raise EndedError
        return 2 <= len(asked) <= 4

    with pytest.raises(EndedError):
        OnnxTrainer(BUNDLE).train(
            BUNDLE.initial, fan, WorkOrder(32, 1, 1000, BUNDLE.hyper), NOTHING, np.random.default_rng(0), pause
        )
    assert len(asked) == 6
    assert asked[4] - asked[1] >= 0.1


def test_a_training_that_was_paused_ends_with_the_same_bits(fan: Dataset) -> None:
    """Held at batch boundaries inside an epoch, and let go on: nothing of what was done is done again, or lost."""
    asked = 0

    def pause() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    order = WorkOrder(8, 2, 1000, BUNDLE.hyper)
    results = [
        OnnxTrainer(BUNDLE).train(BUNDLE.initial, fan, order, NOTHING, np.random.default_rng(4), should_pause)
        for should_pause in (pause, lambda: False)
    ]
    paused, free = results
    assert asked > 1.4 * free.local_steps
    assert (paused.local_steps, paused.num_examples) == (free.local_steps, free.num_examples)
    np.testing.assert_array_equal(paused.parameters, free.parameters)
    np.testing.assert_array_equal(paused.statistics, free.statistics)


SMALL = Dataset(
    Examples(np.zeros((10, 2), np.float32), np.zeros(10, np.int64)),
    Examples(np.zeros((0, 2), np.float32), np.zeros(0, np.int64)),
    np.zeros((1, 2), np.float32),
)


def train_small(bundle: Bundle, *, steps: int = 3, seed: int = 0, **trainer: int) -> TrainingResult:
    """A few steps of the model that tells what it was fed."""
    order, rng = WorkOrder(4, 9, steps, bundle.hyper), np.random.default_rng(seed)
    trained = OnnxTrainer(bundle, **trainer)  # type: ignore[arg-type]
    return trained.train(bundle.initial, SMALL, order, bundle.personal, rng, lambda: False)


def test_personal_entries_start_where_they_stand_and_come_back_trained() -> None:
    """Each step moves the head; it is no part of the version."""
    result = train_small(read_small())
    np.testing.assert_array_equal(result.personal, HEAD + 3 * HEAD_STEP)
    assert result.parameters.shape == (6,)


def test_the_base_version_is_fed_where_the_bundle_asks_for_it() -> None:
    """Pulled towards its base a model that stands on it stays; without, it is pulled to the momentum."""
    np.testing.assert_array_equal(train_small(read_small("base")).parameters, INITIAL_VERSION[:6])
    assert not np.array_equal(train_small(read_small()).parameters, INITIAL_VERSION[:6])


def test_each_step_gets_a_seed_of_its_own_where_the_bundle_asks_for_one() -> None:
    """From the order's generator: the same order repeats them, another one does not."""
    bundle = read_small("seed")
    seen = [float(train_small(bundle, steps=n).statistics[0]) for n in range(1, 9)]
    assert len(set(seen)) > 4
    assert seen == [float(train_small(bundle, steps=n).statistics[0]) for n in range(1, 9)]
    assert seen != [float(train_small(bundle, steps=n, seed=1).statistics[0]) for n in range(1, 9)]


def test_without_the_feed_nothing_but_the_shuffle_is_drawn() -> None:
    """What older bundles learn stays the same to the bit."""
    rng, same = np.random.default_rng(5), np.random.default_rng(5)
    bundle = read_small("base")
    OnnxTrainer(bundle).train(
        bundle.initial, SMALL, WorkOrder(4, 2, 99, bundle.hyper), bundle.personal, rng, lambda: False
    )
    for _ in range(2):
        same.permutation(len(SMALL.train))
    assert rng.bit_generator.state == same.bit_generator.state


def test_the_operators_largest_batch_holds_and_is_counted() -> None:
    """Batches of 2 in place of 4: twice the steps of an epoch, and every example once."""
    bundle = read_small()
    order = WorkOrder(4, 1, 99, bundle.hyper)
    for max_batch, steps in ((0, 3), (2, 5), (100, 3)):
        trainer = OnnxTrainer(bundle, max_batch=max_batch)
        result = trainer.train(bundle.initial, SMALL, order, bundle.personal, np.random.default_rng(0), lambda: False)
        assert (result.local_steps, result.num_examples) == (steps, 10)


def test_a_device_predicts_with_its_own_values() -> None:
    """The same version: `c` where the head is as at first, `a` once the device's own says so."""
    bundle, x = read_small(), np.zeros((1, 2), np.float32)
    assert Predictor(bundle, bundle.initial).predict(x).label == "c"
    own = np.array([100, 0, 50], np.float32)
    assert Predictor(bundle, bundle.initial, own).predict(x).label == "a"


class RestingClock:
    """Time passes by computing and by sleeping, and sleeping takes no time."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return time.thread_time() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def test_the_duty_cycle_is_kept(fan: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.1 the device rests nine times as long as its steps take, and asks meanwhile whether to pause."""
    clock, asked = RestingClock(), []
    monkeypatch.setattr("edge_agent.trainer.time", clock)
    trainer, unheld = OnnxTrainer(BUNDLE, duty_cycle=0.1), Dataset(fan.train, fan.validation[:0], fan.newest)
    rng = np.random.default_rng(0)
    trainer.train(BUNDLE.initial, unheld, WorkOrder(32, 1, 1, BUNDLE.hyper), NOTHING, rng, lambda: False)
    clock.slept, busy_s = 0.0, time.thread_time()
    order = WorkOrder(32, 5, 1000, BUNDLE.hyper)
    trainer.train(BUNDLE.initial, unheld, order, NOTHING, rng, lambda: bool(asked.append(1)))  # type: ignore[func-returns-value]
    busy_s = time.thread_time() - busy_s
    assert 3 * busy_s < clock.slept <= 9 * busy_s  # between its steps it is busy too
    assert len(asked) > 90


def test_the_int8_model_agrees_with_the_fake_quantized_evaluation(fan: Dataset) -> None:
    """Made on the device from a trained version, it predicts what `evaluate` counts as right."""
    result = train(fan, local_epochs=6)
    version = np.concatenate([result.parameters, result.statistics])
    predictor = Predictor(BUNDLE, version)
    x, y = fan.validation.x, fan.validation.y
    guesses = [predictor.predict(x[i : i + 1]) for i in range(len(x))]
    right = sum(guess.label == BUNDLE.labels[label] for guess, label in zip(guesses, y, strict=True))
    feeds = {**BUNDLE.layout.split(version), "x": x, "y": y}
    (correct,) = run(open_session(BUNDLE.graph("evaluate"), 1), ["correct"], feeds)
    assert abs(right - float(correct)) <= 1
    assert all(1 / 3 <= guess.probability <= 1 for guess in guesses)


def test_the_int8_graph_is_int8(fan: Dataset) -> None:
    """Weights of another version give another graph of the same size."""
    first = quantize(BUNDLE, BUNDLE.initial)
    result = train(fan)
    second = quantize(BUNDLE, np.concatenate([result.parameters, result.statistics]))
    assert len(first) == len(second) == len(BUNDLE.graph("int8"))
    assert first != second
