"""What the agent needs of the database that it keeps, whoever keeps it: SQLite on flash, or the simulator's model."""

from typing import Any, Protocol

from edge_agent.events import (
    Forget,
    ForgetCommand,
    Restored,
    SaveCommand,
    SaveConfigured,
    SaveCounter,
    SaveFleetKey,
    SavePaused,
    SaveSpent,
    SaveUpdate,
    Settle,
)

Kept = (
    SaveUpdate
    | Settle
    | Forget
    | SaveCounter
    | SaveFleetKey
    | SaveSpent
    | SaveCommand
    | ForgetCommand
    | SavePaused
    | SaveConfigured
)
"""The durable effects that the database keeps; objects are files."""


class Database(Protocol):
    """The device's database: see `edge_agent.outbox.Outbox`. Raises `ConfigError` where it cannot be used."""

    def start(self) -> Restored:
        """Count this start, and read what the last one left behind."""

    def apply(self, effect: Kept) -> bool:
        """One transaction, on the disk when this returns True; False when the disk is full, and nothing has changed."""

    def ledger(self) -> list[dict[str, Any]]:
        """All verdicts that are kept, oldest first."""

    def close(self) -> None:
        """Let go of it."""
