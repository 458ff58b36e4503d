"""What a careless colleague might write in the gateway. Each plants one bug in production code while it lasts.

The docstrings say what the bug is, and by which rule the simulator should find it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from anabranch.simulator.store_model import MemoryStore, Row
from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import Effect, Send
from broker_aggregator.fleet import Device, Ledger
from broker_aggregator.releasing import Buffered
from broker_aggregator.service import Service, _Given
from broker_aggregator.task import Task
from fl_protocol.messages import DeviceState, Result, Update
from fl_protocol.topics import Kind
from fl_protocol.transport import Delivery


@contextmanager
def puback_before_record() -> Iterator[None]:
    """A delivery is acknowledged as it comes, and not once its batch is on the disk: durable before PUBACK."""
    deliver = Service._deliver

    def deliver_at_once(self: Service, delivery: Delivery) -> Iterator[Effect | _Given]:
        if delivery.receipt is not None:
            self.transport.acknowledge(delivery.receipt)
        return (effect for effect in deliver(self, delivery) if not isinstance(effect, _Given))

    with patch.object(Service, "_deliver", deliver_at_once):
        yield


@contextmanager
def puback_a_turn_early() -> Iterator[None]:
    """An update is acknowledged in the turn that it comes in, and looked at in the next: durable before PUBACK."""
    read, kept = Service._read, list[Delivery]()

    def read_later(self: Service, delivery: Delivery) -> Iterator[Effect]:
        now, kept[:] = list(kept), []
        for earlier in now:
            yield from read(self, earlier)
        if delivery.topic.endswith("/up/update"):
            kept.append(delivery)
        else:
            yield from read(self, delivery)

    with patch.object(Service, "_read", read_later):
        yield


@contextmanager
def record_without_fsync() -> Iterator[None]:
    """The store's `PRAGMA synchronous` is OFF, here by the door of its model: durable before told."""
    make = MemoryStore.__init__

    def make_fast(self: MemoryStore, *arguments: object, **options: object) -> None:
        make(self, *arguments, **options | {"synchronous": False})

    with patch.object(MemoryStore, "__init__", make_fast):
        yield


@contextmanager
def repeat_not_answered() -> Iterator[None]:
    """An update that has its verdict is not answered again, so that a lost one is lost for ever: verdicts in time."""
    take = Coordinator._update

    def take_once(self: Coordinator, device: Device, update: Update, num_bytes: int, now: float) -> Iterator[Effect]:
        if update.seq not in device.ledger(update.incarnation).verdicts:
            yield from take(self, device, update, num_bytes, now)

    with patch.object(Coordinator, "_update", take_once):
        yield


@contextmanager
def manifest_before_commit() -> Iterator[None]:
    """Manifests go out first, so that devices begin sooner: durable before announced."""
    carry_out = Service._carry_out

    def carry_out_in_haste(self: Service, effects: Sequence[Effect | _Given]) -> None:
        hasty = [e for e in effects if isinstance(e, Send) and e.topic.kind is Kind.MANIFEST]
        carry_out(self, hasty)
        carry_out(self, [effect for effect in effects if effect not in hasty])

    with patch.object(Service, "_carry_out", carry_out_in_haste):
        yield


@contextmanager
def stale_will_believed() -> Iterator[None]:
    """Whatever a device's state topic says last is taken, a late will of an earlier connection too: no stale will."""

    def believe(self: Device, state: DeviceState) -> bool:
        self.state = state
        return True

    with patch.object(Device, "heard", believe):
        yield


@contextmanager
def deadline_never_fires() -> Iterator[None]:
    """Every look at the deadline begins it anew: no buffer waits past its deadline."""
    advance = Task.advance

    def advance_anew(self: Task, now: float) -> Iterator[Effect]:
        self.opened_at = now
        return advance(self, now)

    with patch.object(Task, "advance", advance_anew):
        yield


@contextmanager
def doubled_commit() -> Iterator[None]:
    """One of the updates that a release counted stays in the buffer, and is counted again: counted once.

    The store's own guard would end the gateway there; it is lowered, see `credulous_store`.
    """
    flush = Task.flush

    def flush_but_one(self: Task, used: Sequence[Buffered], now: float) -> Iterator[Effect]:
        yield from flush(self, used, now)
        self.buffer.insert(0, used[0])

    with patch.object(Task, "flush", flush_but_one), credulous_store():
        yield


@contextmanager
def repeat_counted_as_new() -> Iterator[None]:
    """The gateway does not look whether it knows an update: one verdict an update.

    The store's own guard would end the gateway there; it is lowered, see `credulous_store`.
    """

    def find_nothing(self: Ledger, seq: int) -> Result | None:
        return None

    with patch.object(Ledger, "find", find_nothing), credulous_store():
        yield


@contextmanager
def credulous_store() -> Iterator[None]:
    """INSERT OR REPLACE where the store says INSERT, and UPDATE without WHERE disposal = 'buffered'."""

    def record(self: MemoryStore, row: Row) -> None:
        self._set(self._ledger, row[:3], row)

    def counted_or_not(self: MemoryStore, name: tuple[str, str, int]) -> Row:
        return self._ledger[name]

    with patch.object(MemoryStore, "_record", record), patch.object(MemoryStore, "_waiting", counted_or_not):
        yield
