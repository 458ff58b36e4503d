"""What the gateway needs of a store, whoever keeps it: SQLite on a disk, or the simulator's model of one."""

from contextlib import AbstractContextManager
from typing import Protocol

from broker_aggregator.events import Durable, Release
from broker_aggregator.releasing import Buffered
from broker_aggregator.restoring import Loaded
from fl_protocol.messages import Plan
from fl_protocol.tensors import ModelLayout


class ReadableStore(Protocol):
    """A store as its readers see it."""

    def load(self, now: float) -> Loaded:
        """Fleet, tasks with their buffers, counters: what a coordinator starts from at `now` (monotonic seconds)."""

    def suspects(self) -> dict[str, int]:
        """How often each delivery, by its SHA-256, was in hand at a crash."""

    def plan(self, task: str, revision: int | None = None) -> Plan:
        """A task's plan, the newest revision unless told. Raises `LookupError` for one that is not there."""

    def layout(self, task: str, revision: int) -> ModelLayout:
        """The layout that a plan's revision trained. Raises `LookupError` for one that is not there."""

    def releases(self, task: str) -> list[int]:
        """The released versions whose vector is still kept, oldest first."""

    def values(self, task: str) -> dict[int, float | None]:
        """What those versions measured on the held-out set, None where they were not; oldest first."""

    def release(self, task: str, version: int | None = None) -> Release:
        """A version with its vector, the newest released one unless told. Raises `ConfigError` for one not kept."""

    def counted_in(self, task: str, version: int) -> list[Buffered]:
        """The updates that a kept version counted, or would have, in the order of their summation."""

    def vector_bytes(self, sha256: str) -> bytes | None:
        """The kept version of that SHA-256 as devices fetch it, None where there is none."""

    def close(self) -> None:
        """Let go of it."""


class Store(ReadableStore, Protocol):
    """A store as the service writes it. A write that fails raises `sqlite3.Error`; its transaction leaves nothing."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing: left by the front door, what was written in it is on the disk for good."""

    def next_counter(self, name: str) -> int:
        """One more than the last of that name, 1 at first. In a transaction."""

    def apply(self, effect: Durable, ts: int) -> None:
        """Write one effect, at `ts` (ms since 1970). In a transaction.

        Raises `sqlite3.IntegrityError` for a second verdict on an update, a version that is there already, an update
        that would be counted or quarantined but is in no buffer, and the judgement of a version that no canary tries.
        """

    def suspect(self, digest: str) -> None:
        """A delivery was in hand when something raised; on the disk when this returns. Outside of transactions."""
