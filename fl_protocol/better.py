"""Which of two values of a metric is better: the higher one (accuracy), or the lower one (an error)."""

from collections.abc import Iterable

from fl_protocol.bundle import Better


def reaches(value: float, target: float, better: Better) -> bool:
    """Whether `value` is as good as `target`, or better; what is not a number reaches nothing."""
    return value >= target if better == "higher" else value <= target


def improves(value: float, than: float | None, better: Better) -> bool:
    """Whether `value` is better than the best so far; anything that is a number is better than nothing."""
    if than is None:
        return value == value
    return value > than if better == "higher" else value < than


def best_of(values: Iterable[float], better: Better) -> float | None:
    """The best of them; None of none."""
    best: float | None = None
    for value in values:
        if improves(value, best, better):
            best = value
    return best
