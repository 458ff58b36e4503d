"""From a long schedule of faults that breaks something to a short one that still does."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.shrink import shrink
from anabranch.simulator.twin import Twin
from tests.chaos.mutants.catalogue import MUTANTS, Mutant
from tests.chaos.mutants.gateway import repeat_counted_as_new
from tests.chaos.storms import violations

schedules = st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=40)


@given(schedules, st.data())
def test_nothing_can_be_left_out_of_what_remains(schedule: list[int], data) -> None:
    """It fails still, it is a part of the schedule in its order, and without any one of its faults it does not fail."""
    causes = data.draw(st.lists(st.sets(st.sampled_from(schedule), min_size=1, max_size=4), min_size=1, max_size=3))

    def fails(only: Sequence[int]) -> bool:
        return any(cause <= set(only) for cause in causes)

    small = shrink(schedule, fails)
    assert fails(small)
    assert list(small) == [fault for fault in schedule if fault in small]
    assert not any(fails([fault for fault in small if fault != left_out]) for left_out in small)


@given(schedules, st.data())
def test_a_single_cause_is_found_whole(schedule: list[int], data) -> None:
    """Where one set of faults is to blame, it is what remains, and few runs were tried for it."""
    cause = data.draw(st.sets(st.sampled_from(schedule), min_size=1, max_size=4))
    tried = 0

    def fails(only: Sequence[int]) -> bool:
        nonlocal tried
        tried += 1
        return cause <= set(only)

    assert set(shrink(schedule, fails)) == cause
    assert tried <= 2 + len(schedule) ** 2 + 3 * len(schedule)  # the bound of the paper


@given(schedules)
def test_a_run_that_breaks_by_itself_needs_no_fault(schedule: list[int]) -> None:
    """Then the fault-free run is the smallest one that shows it, and the first that is tried."""
    tried: list[tuple[int, ...]] = []
    assert shrink(schedule, lambda only: not tried.append(tuple(only))) == ()
    assert tried == [()]


def test_a_planted_bug_needs_few_of_its_storms_faults() -> None:
    """A repeat that is counted as new: of a whole storm few faults are left, which make a device send again."""
    mutant = next(mutant for mutant in MUTANTS if mutant.plant is repeat_counted_as_new)
    seed = next(seed for seed in range(100) if found(mutant, seed))
    faults = [fault.number for fault in Twin(mutant.storm, seed).faults.schedule]
    small = shrink(faults, lambda only: found(mutant, seed, only))
    assert len(faults) >= 6
    assert 1 <= len(small) <= 3
    assert found(mutant, seed, small)
    assert not found(mutant, seed, ())
    assert violations(mutant.storm, seed, only=small) == [], "without the planted bug"


def found(mutant: Mutant, seed: int, only: Sequence[int] | None = None) -> bool:
    """Whether the bug's own rule is broken under these faults."""
    with mutant.plant():
        return any(mutant.rule in broken for broken in violations(mutant.storm, seed, until=mutant.rule, only=only))
