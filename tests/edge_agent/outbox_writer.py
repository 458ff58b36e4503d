"""Writes to an outbox until it is killed, and says on standard output what the disk must have by then."""

import sys
from pathlib import Path

import numpy as np

from edge_agent.events import LocalVector, PendingUpdate, SaveCounter, SaveUpdate, Settle
from edge_agent.outbox import Outbox
from fl_protocol.messages import Result


def main(directory: Path, seed: int) -> None:
    """For ever: store an update, settle it; a line after each transaction. Vectors are filled with the seq."""
    outbox = Outbox(directory / "outbox.sqlite3")
    restored, rng = outbox.start(), np.random.default_rng(seed)
    pending, seq = (restored.pending[0] if restored.pending else None), restored.seq
    while True:
        if pending is None:
            seq += 1
            vector = np.full(5_000, seq, np.float32)
            sealed = seq.to_bytes(8, "big") * int(rng.integers(1, 2_000))
            pending = PendingUpdate("t", restored.incarnation, seq, 3 * seq, "f" * 32, 7, sealed, vector, -vector)
            assert outbox.apply(SaveUpdate(pending, LocalVector("f" * 32, vector[:3])))
            say(f"saved {seq}")
        verdict = "accepted" if seq % 3 else "stale"
        result = Result(task="t", incarnation=pending.incarnation, seq=seq, verdict=verdict, counter=seq)  # type: ignore[arg-type]
        assert outbox.apply(Settle(pending, result, "results"))
        say(f"settled {seq}")
        assert outbox.apply(SaveCounter("plans", seq))
        say(f"counted {seq}")
        pending = None


def say(line: str) -> None:
    """One write, so that a line is whole or not there."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
