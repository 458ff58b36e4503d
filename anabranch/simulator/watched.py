"""The gateway's transport with the checker looking on: at what is acknowledged, what is told, and what is believed."""

from collections.abc import Callable
from dataclasses import dataclass

from anabranch.simulator.checker import Checker
from anabranch.simulator.link import OUTGOING_BYTES, LinkedTransport
from broker_aggregator.coordinator import UPLOAD_BYTES, Coordinator
from broker_aggregator.fleet import KEPT_VERDICTS
from broker_aggregator.service import Service
from broker_aggregator.task import KEPT_REPORTS
from fl_protocol.codec import decode_as
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Chunk, DeviceState, Envelope, Manifest, Offer, Result, Update
from fl_protocol.topics import Kind, parse
from fl_protocol.transport import Delivery, Incoming

Name = tuple[str, str, int]  # device, incarnation, seq


@dataclass(frozen=True)
class _InHand:
    """A delivery that brings an update, or the last chunk of one if `sha256` is closed when it is acknowledged."""

    name: Name
    sha256: str = ""


class WatchedTransport(LinkedTransport):
    """A `LinkedTransport` that shows the checker what passes."""

    _checker: Checker
    _service: Callable[[], Service | None]

    def watch(self, checker: Checker, service: Callable[[], Service | None]) -> None:
        """Show everything to `checker`; `service` is the program that is watched."""
        self._checker, self._service = checker, service
        self._in_hand: dict[object, _InHand] = {}  # by receipt
        self._offered: dict[tuple[str, str], Name] = {}  # (device, SHA-256) -> the update in that object
        self._told: set[Name] = set()  # in this turn
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
        hand, service = self._in_hand.pop(receipt, None), self._service()
        if hand and service and not (hand.sha256 and service.coordinator.inbox.get(hand.name[0], hand.sha256)):
            self._checker.acknowledges(hand.name, told=hand.name in self._told)
        super().acknowledge(receipt)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """As `Transport.publish`."""
        if payload:
            where = parse(topic)
            if where.kind is Kind.RESULT:
                result = decode_as(Result, payload)
                self._checker.tells(where.device, result)
                self._told.add((where.device, result.incarnation, result.seq))
            elif where.kind is Kind.MANIFEST:
                manifest = decode_as(Manifest, payload)
                self._checker.announces(manifest.task, manifest.version, manifest.sha256, where.channel)
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
            waits = buffer and plan.state == "running" and plan.mode == "asynchronous" and task.trial is None
            checker.waits(plan.task, plan.deadline_s, (task.release.version, buffer[0].name) if waits else None)
        self._told.clear()

    def _take(self, delivery: Delivery) -> None:
        try:
            topic = parse(delivery.topic)
            match topic.kind:
                case Kind.STATE if delivery.payload:
                    self._heard.setdefault(topic.device, []).append(decode_as(DeviceState, delivery.payload))
                case Kind.OFFER:
                    offer = decode_as(Offer, delivery.payload)
                    self._offered[topic.device, offer.sha256] = topic.device, offer.incarnation, offer.seq
                case Kind.UPDATE:
                    update = decode_as(Update, decode_as(Envelope, delivery.payload).body)
                    self._in_hand[delivery.receipt] = _InHand((topic.device, update.incarnation, update.seq))
                case Kind.CHUNK_UP:
                    self._take_chunk(topic.device, decode_as(Chunk, delivery.payload).sha256, delivery.receipt)
        except ProtocolError:
            return  # as the gateway finds too

    def _take_chunk(self, device: str, sha256: str, receipt: object) -> None:
        service, name = self._service(), self._offered.get((device, sha256))
        if name and service and service.coordinator.inbox.get(device, sha256):
            self._in_hand[receipt] = _InHand(name, sha256)
