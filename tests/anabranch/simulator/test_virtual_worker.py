"""A training takes the time that it takes, and stands still while it is held."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.virtual_worker import Pace, VirtualWorker
from anabranch.simulator.world import World
from edge_agent.events import Train, Trained, TrainingFailed
from edge_agent.sources import Dataset, Examples
from edge_agent.training import TrainingResult, WorkOrder
from fl_protocol.errors import Code, ProtocolError

DATA = Dataset(Examples(np.zeros((10, 1)), np.zeros(10)), Examples(np.zeros((0, 1)), np.zeros(0)), np.zeros((1, 1)))
ORDER = Train("task", None, np.zeros(1), WorkOrder(4, 2, 100), np.zeros(0), np.random.default_rng(0))
RESULT = TrainingResult(np.zeros(1), np.zeros(0), np.zeros(0), 10, 6, 0.0)


class Bench:
    """A worker of 3 s a step and 1 s around them: six steps take 19 s."""

    def __init__(self, *, fits: bool = True, error: ProtocolError | None = None) -> None:
        self.world, self.woken, self.seen, self.error = World(0), [], [], error
        self.worker = VirtualWorker(
            self.world,
            "a",
            Pace(3.0, 1.0, fits),
            self,
            self.woken.append,
            lambda device, _order: self.seen.append(("begins", device)),
            lambda device, _order, _result: self.seen.append(("learnt", device)),
        )

    def begin(self, _device: str, _order: Train, _dataset: Dataset):
        """`Learning.begin`."""
        return self.outcome

    def outcome(self) -> TrainingResult:
        """What it comes to."""
        if self.error:
            raise self.error
        return RESULT

    def at(self, time: float):
        """The worker's outcome at a time."""
        self.world.now = time
        return self.worker.outcome()


def test_the_outcome_is_there_when_its_time_has_passed() -> None:
    """Not before, and once; it says how long it took, and who wants to know is told when to look."""
    bench = Bench()
    bench.worker.train(ORDER, DATA)
    assert bench.woken == [19.0]
    assert bench.at(18.9) is None
    done = bench.at(19.0)
    assert isinstance(done, Trained)
    assert (done.result.train_seconds, bench.worker.spent_s) == (19.0, 19.0)
    assert bench.at(50.0) is None
    assert bench.seen == [("begins", "a"), ("learnt", "a")]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.sampled_from("xy")), max_size=4))
def test_time_passes_only_while_nothing_holds_it(holds) -> None:
    """It ends when it has had 19 s on which no hold lay, however they overlap."""
    bench, changes = Bench(), []
    bench.worker.train(ORDER, DATA)
    busy: dict[str, int] = {}
    for start, length, why in sorted(holds):
        if start >= busy.get(why, 0):  # one reason holds it once at a time
            changes += [(start, 1, why), (start + length, 0, why)]
            busy[why] = start + length
    held: set[str] = set()
    had, before = 0.0, 0.0
    for time, begins, why in sorted(changes):
        had += 0.0 if held else time - before
        if had >= 19.0 - 1e-6:
            return  # it was over before that
        bench.world.now = before = time
        bench.worker.hold(why, bool(begins))
        held = held | {why} if begins else held - {why}
        assert bench.worker.outcome() is None
    assert bench.at(before + 19.0 - had - 1e-3) is None
    assert isinstance(bench.at(before + 19.0 - had + 1e-3), Trained)


def test_a_device_without_the_memory_fails() -> None:
    """After its overhead, without training anything."""
    bench = Bench(fits=False)
    bench.worker.train(ORDER, DATA)
    assert bench.at(0.9) is None
    assert bench.at(1.0) == TrainingFailed("task", None, "not enough memory")


def test_a_graph_that_fails_is_told() -> None:
    """With its code."""
    bench = Bench(error=ProtocolError(Code.NAN, "the loss is not finite"))
    bench.worker.train(ORDER, DATA)
    assert bench.at(19.0) == TrainingFailed("task", Code.NAN, "the loss is not finite")


@pytest.mark.parametrize("then", ["stop", "train"])
def test_what_is_abandoned_never_ends(then: str) -> None:
    """A stop forgets it; another training takes its place, and its own time."""
    bench = Bench()
    bench.worker.train(ORDER, DATA)
    bench.world.now = 10.0
    if then == "stop":
        bench.worker.stop()
        assert bench.at(100.0) is None
    else:
        bench.worker.train(ORDER, DATA)
        assert bench.at(28.0) is None
        assert isinstance(bench.at(29.0), Trained)
