"""The gateway's transport with the checker looking on: at what is acknowledged, what is told, and what is believed."""

from collections.abc import Callable

from anabranch.simulator.checker import Checker
from anabranch.simulator.link import OUTGOING_BYTES, LinkedTransport
from broker_aggregator.coordinator import UPLOAD_BYTES, Coordinator
from broker_aggregator.fleet import KEPT_VERDICTS
from broker_aggregator.service import Service
from broker_aggregator.task import KEPT_REPORTS
from fl_protocol.codec import decode_as
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import DeviceState, Manifest, Result
from fl_protocol.topics import Kind, Topic, parse
from fl_protocol.transport import Delivery, Incoming

UPDATES = (Kind.UPDATE, Kind.CHUNK_UP)


class WatchedTransport(LinkedTransport):
    """A `LinkedTransport` that shows the checker what passes."""

    _checker: Checker
    _service: Callable[[], Service | None]

    def watch(self, checker: Checker, service: Callable[[], Service | None]) -> None:
        """Show everything to `checker`; `service` is the program that is watched."""
        self._checker, self._service = checker, service
        self._in_hand: dict[object, str] = {}  # receipt -> device, of updates
        self._heard: dict[str, list[DeviceState]] = {}
        checker.gateway_starts()

    def receive(self, timeout: float) -> list[Incoming]:
        """As `Transport.receive`."""
        events = super().receive(timeout)
        for event in events:
            if isinstance(event, Delivery):
                self._take(event)
        return events

    def acknowledge(self, receipt: object) -> None:
        """As `Transport.acknowledge`."""
        device, service = self._in_hand.pop(receipt, None), self._service()
        known = service and device and service.coordinator.fleet.devices.get(device)
        if known:
            ledgers = known.ledgers.items()
            newest = {name: next(reversed(ledger.verdicts.values())) for name, ledger in ledgers if ledger.verdicts}
            self._checker.acknowledges(known.id, newest)
        super().acknowledge(receipt)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        if payload:
            where = parse(topic)
            if where.kind is Kind.RESULT:
                self._checker.tells(where.device, decode_as(Result, payload))
            elif where.kind is Kind.MANIFEST:
                manifest = decode_as(Manifest, payload)
                self._checker.announces(manifest.task, manifest.version, manifest.sha256)
        super().publish(topic, payload, qos=qos, retain=retain)

    def look(self, coordinator: Coordinator) -> None:
        """After a turn: what the gateway believes of those it heard of, and what it holds in memory."""
        checker = self._checker
        for device, states in self._heard.items():
            for state in states:
                checker.hears(device, state.boot, state.bseq, state.state)
            known = coordinator.fleet.devices.get(device)
            if known is not None and known.state is not None:
                checker.believes(device, known.state.boot, known.state.bseq, known.state.state)
            if known is not None:
                for ledger in known.ledgers.values():
                    checker.bounded(f"the ledger of {device}", len(ledger.verdicts), KEPT_VERDICTS)
        self._heard.clear()
        checker.bounded("the gateway's queue of packets", self.backlog, OUTGOING_BYTES)
        checker.bounded("half-received updates", coordinator.inbox.reserved, UPLOAD_BYTES)
        for task in coordinator.tasks.values():
            plan, buffer = task.plan, task.buffer
            checker.bounded(f"the reports of {plan.task}", len(task.reports), KEPT_REPORTS)
            waits = buffer and plan.state == "running" and plan.mode == "asynchronous"
            checker.waits(plan.task, plan.deadline_s, (task.release.version, buffer[0].name) if waits else None)
        checker.turn_ends()

    def _take(self, delivery: Delivery) -> None:
        try:
            topic: Topic = parse(delivery.topic)
        except ProtocolError:
            return
        if topic.kind in UPDATES and delivery.receipt is not None:
            self._in_hand[delivery.receipt] = topic.device
        elif topic.kind is Kind.STATE and delivery.payload:
            self._heard.setdefault(topic.device, []).append(decode_as(DeviceState, delivery.payload))
