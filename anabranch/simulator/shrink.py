"""From a schedule of faults that breaks something to a small one that still does.

Delta debugging (Zeller and Hildebrandt, 2002, `ddmin`): leave out halves, then quarters, and so on, as long as the run
stays broken. All else of the run is drawn from the seed as before, so that what is left is a replay too.
"""

from collections.abc import Callable, Sequence

Fails = Callable[[Sequence[int]], bool]


def shrink(faults: Sequence[int], fails: Fails) -> tuple[int, ...]:
    """The numbers of a subset that still fails, no single one of which can be left out. `fails(faults)` is known."""
    if fails(()):
        return ()
    left, parts = list(faults), 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        pieces = [left[start : start + size] for start in range(0, len(left), size)]
        for piece in pieces:
            rest = [fault for fault in left if fault not in piece]
            if rest and fails(rest):
                left, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(left), 2 * parts)
    return tuple(left)
