"""`python -m tests.chaos.hunt [SEEDS]`: how many seeds of chaos.toml each planted bug takes to be found, as a table."""

import sys
import time

from tests.chaos.mutants.catalogue import MUTANTS
from tests.chaos.storms import CHAOS, FIRST_SEED, violations


def main(most: int) -> None:
    """One line a bug: the first seed that shows it, and the seconds up to there."""
    sys.stdout.write("| planted bug | found by | seed | seconds |\n|---|---|---|---|\n")
    for mutant in MUTANTS:
        started, seed = time.monotonic(), FIRST_SEED
        with mutant.plant():
            while not any(mutant.rule in broken for broken in violations(CHAOS, seed, until=mutant.rule)):
                seed += 1
                if seed >= FIRST_SEED + most:
                    raise SystemExit(f"{mutant.name} is not found with {most} seeds")
        sys.stdout.write(f"| {mutant.name} | {mutant.rule} | {seed} | {time.monotonic() - started:.1f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
