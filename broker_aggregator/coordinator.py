"""The gateway's heart: `handle(event, now)` yields effects. No I/O, no clock, no topic strings.

An update's way: `_envelope` (who says it?) -> `_update` (told before? belongs to a task? passes `admission`?) ->
`RecordUpdate` and a verdict -> `Task.advance` (enough for a release?) -> `CommitRelease` and a manifest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from broker_aggregator.admission import Rejected
from broker_aggregator.announcer import Announcer
from broker_aggregator.commanding import Commanding
from broker_aggregator.enrollment import Enrollment
from broker_aggregator.events import (
    Asked,
    Claimed,
    CommitRelease,
    DropParts,
    Effect,
    Evaluated,
    Event,
    Gone,
    Note,
    Online,
    Progressed,
    Promote,
    Received,
    RecordUpdate,
    RecordVerdict,
    SaveState,
    SaveTask,
    Send,
    SendDelta,
    SendObject,
    Tick,
    Withhold,
)
from broker_aggregator.fleet import Device, Fleet
from broker_aggregator.operations import answer
from broker_aggregator.releasing import Buffered
from broker_aggregator.rolling import Rolling
from broker_aggregator.task import Task
from broker_aggregator.trials import choose
from fl_protocol.codec import decode_as
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import (
    Chunk,
    DeviceEvent,
    DeviceInfo,
    DeviceState,
    Envelope,
    Get,
    Grant,
    Offer,
    Renew,
    Reported,
    Result,
    SlotAnswer,
    Sync,
    Update,
    Verdict,
    Want,
)
from fl_protocol.signing import unseal_update, verify_offer
from fl_protocol.topics import Kind
from fl_protocol.transfer import Inbox, Reception, chunk_size_for

MIN_FREE_BYTES = 64 << 20  # of the store's disk; below it nothing is accepted
DISK_RETRY_S = 300
UPLOAD_BYTES = 256 << 20  # all half-received updates together
UPLOAD_TTL_S = 3600.0
STRANGER_RETRY_S = 300  # a device that is not let in, or signs with another key, keeps its update and asks again


@dataclass
class Coordinator:
    """Everything the gateway decides. Built from what the store holds; see `StoreReader.load`."""

    fleet_name: str
    fleet: Fleet = field(default_factory=Fleet)
    tasks: dict[str, Task] = field(default_factory=dict)
    operator_counter: int = 0
    operator_done: int = 0  # the counter of the last command that was successful
    last_answer: Send | None = None  # to the operator
    last_versions: dict[str, int] = field(default_factory=dict)  # of deleted tasks
    enrollment: Enrollment | None = None  # without one, devices are let in by hand
    commanding: Commanding = field(default_factory=Commanding)
    rolling: Rolling = field(default_factory=Rolling)
    min_free_bytes: int = MIN_FREE_BYTES
    inbox: Inbox = field(default_factory=lambda: Inbox(UPLOAD_BYTES, UPLOAD_TTL_S))
    say: Announcer = field(init=False)
    _free_bytes: int = 1 << 62

    def __post_init__(self) -> None:
        self.say = Announcer(self.fleet_name, self.commanding)

    def handle(self, event: Event, now: float) -> Iterator[Effect]:
        """What `event` asks for; `now` is a monotonic clock in seconds."""
        match event:
            case Online():
                yield from self._online(event, now)
            case Received():
                yield from self._received(event, now)
            case Claimed() if self.enrollment is not None:
                yield from self.enrollment.asked(self, event.claim, event.request, event.now_ms)
            case Progressed():
                yield from self._progressed(event)
            case Gone():
                yield Note("info", f"{event.device} left for good")
            case Asked():
                yield from answer(self, event, now)
                self.fleet.changed()
            case Evaluated() if event.task in self.tasks:
                task = self.tasks[event.task]
                yield from self.publishing(task, task.evaluated(event.version, event.loss, event.value, now))
            case Tick():
                self._free_bytes = event.free_bytes
                self.inbox.expire(now)
                yield from self._grants(now)
                yield from self.rolling.advance(self, event.now_ms)
                yield from self.commanding.expire(self, event.now_ms)
        yield from self._turn(now)

    def _turn(self, now: float) -> Iterator[Effect]:
        """After every event: releases that are due, and pages for people."""
        for task in self.tasks.values():
            yield from self.publishing(task, task.advance(now))
            for lease in task.invite(self.fleet, now):
                yield self.say.slot(task, lease)
            for line in task.lines():
                yield Send(self.say.topic(Kind.METRICS, task=line.task), line)
            yield from self.say.status(task, self.fleet, now)
            choose(task, self.fleet.present)
        yield from self.say.canaries(self.tasks, self.fleet)

    def _grants(self, now: float) -> Iterator[Effect]:
        """Ask again where it was silent: once a tick, since to look at all takes time; chunks are answered at once."""
        for device, grant in self.inbox.next_grants(now):
            yield self.say.to(device, Kind.GRANT, grant)

    def publishing(self, task: Task, effects: Iterator[Effect]) -> Iterator[Effect]:
        """Pass effects on, each with what must be published because of it."""
        for effect in effects:
            yield effect
            match effect:
                case CommitRelease(state="released"):
                    yield from self.say.release(task)
                case CommitRelease(state="canary"):
                    yield from self.say.canary(task)
                case Promote():
                    yield from self.say.release(task)
                    yield self.say.no_canary(task)
                case Withhold():
                    yield self.say.no_canary(task)
                case SaveTask():
                    yield self.say.plan(task)

    def desired_of_all(self) -> Iterator[Effect]:
        """Tell every device its tasks: all of them, until selection says otherwise."""
        for device in self.fleet.devices.values():
            if not device.revoked:
                yield self.say.desired(device.id, self.tasks)

    def _online(self, event: Online, now: float) -> Iterator[Effect]:
        self.say.chunk_size = chunk_size_for(event.mqtt, event.max_packet)
        yield from self.announce(event.now_ms)
        if not event.session_present:
            self.inbox.resume()
            yield from self._grants(now)
            yield Send(self.say.topic(Kind.SYNC), Sync())

    def announce(self, now_ms: int) -> Iterator[Effect]:
        """All that is retained: for a broker that may have lost it, and when another key is to sign it."""
        for task in self.tasks.values():
            yield self.say.plan(task)
            yield self.say.manifest(task)
            if task.plan.guard is not None:
                yield from self.say.canary(task) if task.canary else iter([self.say.no_canary(task)])
            self.say.forget(task.plan.task)
        yield from self.desired_of_all()
        yield from self.commanding.online(self, now_ms)

    # --- what devices say ------------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> Iterator[Effect]:
        try:
            device = self.fleet.member(event.device)
        except ProtocolError as error:
            yield Note("warning", error.message)
            if isinstance(event.message, Envelope):
                yield from self._refuse_unread(event.device, event.message, error)
            return
        match event.message:
            case DeviceState() as state:
                was_active, before = device.active, device.state
                if device.heard(state):
                    if device.active != was_active:
                        self.fleet.changed()
                    yield SaveState(device.id, state)
                    if device.active and (before is None or before.connection != state.connection):
                        yield from self.commanding.born(self, device.id, event.now_ms)
            case DeviceInfo() as info:
                device.info = info
                yield SaveState(device.id, info)
                if self.enrollment is not None:
                    yield from self.enrollment.seen(device.id, info.public_key)
            case Renew() as renew if self.enrollment is not None:
                yield from self.enrollment.renew(self, device, renew, event.now_ms)
            case Reported() as reported:
                yield from self.commanding.reported(device, reported)
            case DeviceEvent() as said:
                yield Note(said.level, f"{device.id}: {said.event} {said.code} {said.message}")
            case Envelope() as envelope:
                yield from self._envelope(device, envelope, event.num_bytes, now)
            case Offer() as offer:
                yield from self._offer(device, offer, now)
            case SlotAnswer() as said if said.task in self.tasks:
                self.tasks[said.task].invitations.answered(device.id, said, now)
            case Chunk() as chunk:
                yield from self._chunk(device, chunk, now)
            case Get() as get:
                yield from self._get(device, get)
            case Want() as want if want.task in self.tasks and self.tasks[want.task].offers(want.sha256):
                topic = self.say.topic(Kind.DELTA, device=device.id)
                yield SendDelta(topic, want, self.tasks[want.task].layout, self.say.chunk_size)

    def _progressed(self, event: Progressed) -> Iterator[Effect]:
        try:
            device = self.fleet.member(event.topic.device)
        except ProtocolError as error:
            yield Note("warning", error.message)
            return
        yield from self.commanding.progress(self, device, event.topic, event.progress, event.now_ms)

    def _refuse_unread(self, device: str, envelope: Envelope, error: ProtocolError) -> Iterator[Effect]:
        """Answer an update that nobody vouches for. Not finally: whoever sent it, the device must not lose its own."""
        try:
            update = decode_as(Update, envelope.body)
        except ProtocolError:
            return
        result = _result(update, "deferred", error.code, error.message, STRANGER_RETRY_S)
        yield self.say.to(device, Kind.RESULT, result)

    def _envelope(self, device: Device, envelope: Envelope, num_bytes: int, now: float) -> Iterator[Effect]:
        topic = str(self.say.topic(Kind.UPDATE, device=device.id))
        try:
            update = unseal_update(envelope, device.public_key, self.fleet_name, topic)
        except ProtocolError as error:
            yield Note("warning", f"{device.id}: {error}")
            yield from self._refuse_unread(device.id, envelope, error)
            return
        yield from self._update(device, update, num_bytes, now)

    def _update(self, device: Device, update: Update, num_bytes: int, now: float) -> Iterator[Effect]:
        """Exactly one stored verdict an update; a repeat hears it again."""
        try:
            told = device.ledger(update.incarnation).find(update.seq)
        except ProtocolError as error:
            yield self.say.to(device.id, Kind.RESULT, _result(update, "rejected", error.code, error.message))
            return
        if told is not None:
            yield self.say.to(device.id, Kind.RESULT, told.repeated())
            return
        task = self.tasks.get(update.task)
        try:
            if update.device != device.id:
                raise Rejected("rejected", Code.AUTH, f"{device.id} sent an update that says it is {update.device}'s")
            if task is None:
                raise Rejected("rejected", Code.TASK, f"there is no task {update.task}")
            if self._free_bytes < self.min_free_bytes:
                raise Rejected("deferred", Code.DISK, "the gateway's disk is nearly full", DISK_RETRY_S)
            _within_refusals(device, now)
            measure = task.admit(update)
        except Rejected as refused:
            result = _result(update, refused.verdict, refused.code, refused.why, refused.retry_in_s)
            yield from self._refused(device, task, result, update.base_version, num_bytes)
            return
        assert task is not None
        accepted = task.priced(_result(update, "accepted"), num_bytes)
        device.ledger(update.incarnation).record(accepted)
        task.count(accepted.verdict, num_bytes)
        yield RecordUpdate(update, accepted, num_bytes, measure.norm, measure.scale)
        yield self.say.to(device.id, Kind.RESULT, accepted)
        task.accept(Buffered(update, measure.norm, measure.scale, num_bytes), now)

    def _refused(
        self, device: Device, task: Task | None, result: Result, base_version: int, num_bytes: int
    ) -> Iterator[Effect]:
        if task is not None:
            result = task.priced(result, num_bytes)
            if result.final:
                task.invitations.refused(device.id, base_version)
            task.count(result.verdict, num_bytes)
            task.in_vain += result.final and base_version == task.release.version
        if result.final:
            device.refusals.take()
            device.ledger(result.incarnation).record(result)
            yield RecordVerdict(device.id, result, base_version, num_bytes)
        yield self.say.to(device.id, Kind.RESULT, result)

    # --- objects larger than a packet ------------------------------------------------------------------------------

    def _offer(self, device: Device, offer: Offer, now: float) -> Iterator[Effect]:
        """Say at once what need not be sent; otherwise grant the first window."""
        try:
            verify_offer(offer, device.public_key, self.fleet_name, str(self.say.topic(Kind.OFFER, device=device.id)))
        except ProtocolError as error:
            yield Note("warning", f"{device.id}: {error}")
            refusal = Grant(sha256=offer.sha256, answer="reject", retry_in_s=STRANGER_RETRY_S, code=error.code)
            yield self.say.to(device.id, Kind.GRANT, refusal)
            return
        try:
            told = device.ledger(offer.incarnation).find(offer.seq)
        except ProtocolError as error:
            yield self.say.to(device.id, Kind.RESULT, _result(offer, "rejected", error.code, error.message))
            return
        if told is not None:
            yield self.say.to(device.id, Kind.RESULT, told.repeated())
            return
        task = self.tasks.get(offer.task)
        try:
            if task is None:
                raise Rejected("rejected", Code.TASK, f"there is no task {offer.task}")
            _within_refusals(device, now)
            task.admit_offer(offer, device.id)
        except Rejected as refused:
            result = _result(offer, refused.verdict, refused.code, refused.why, refused.retry_in_s)
            yield from self._refused(device, task, result, offer.base_version, 0)
            return
        try:
            if self._free_bytes - offer.size < self.min_free_bytes:
                raise ProtocolError(Code.DISK, "the gateway's disk is nearly full")
            reception = self.inbox.open(offer.sha256, offer.size, offer.chunk_size, device.id, now)
            grant = reception.offered(now)
        except ProtocolError as error:
            answer: Literal["full", "reject"] = "full" if error.code in (Code.QUOTA, Code.DISK) else "reject"
            grant = Grant(sha256=offer.sha256, answer=answer, retry_in_s=DISK_RETRY_S, code=error.code)
        yield self.say.to(device.id, Kind.GRANT, grant)

    def _chunk(self, device: Device, chunk: Chunk, now: float) -> Iterator[Effect]:
        """One more block of an update; with the last one it is an update like any other."""
        reception = self.inbox.get(device.id, chunk.sha256)
        if reception is None:
            return  # an old one: the device offers again
        try:
            whole = reception.add(chunk, now)
        except ProtocolError as error:
            yield from self._not_kept(device, reception, error, now)
            return
        if not whole:
            grant = reception.next_grant(now)
            if grant is not None:
                yield self.say.to(device.id, Kind.GRANT, grant)
            return
        self.inbox.close(device.id, chunk.sha256)  # whatever it holds: a lie about its hash is offered anew
        try:
            yield from self._envelope(device, decode_as(Envelope, reception.data()), reception.size, now)
        except ProtocolError as error:
            yield Note("warning", f"{device.id}: {error}")
        yield DropParts(device.id, chunk.sha256)

    def _not_kept(self, device: Device, reception: Reception, error: ProtocolError, now: float) -> Iterator[Effect]:
        """A chunk that is not what it says is forgotten; where the disk has no room for it, the device waits."""
        if error.code != Code.DISK:
            yield Note("warning", f"{device.id}: {error}")
        elif reception.wait(now, DISK_RETRY_S):
            yield Note("error", f"{device.id}: {error}")
            full = Grant(sha256=reception.sha256, answer="full", retry_in_s=DISK_RETRY_S, code=error.code)
            yield self.say.to(device.id, Kind.GRANT, full)

    def _get(self, device: Device, get: Get) -> Iterator[Effect]:
        topic = self.say.topic(Kind.CHUNK_DOWN, device=device.id)
        yield SendObject(topic, get.sha256, get.chunk_size, get.missing, get.window)


def _within_refusals(device: Device, now: float) -> None:
    """Raises `Rejected` for a device that was refused too often: not finally, so that nothing of it need be kept."""
    if device.refusals.is_spent(now):
        why = "too many updates of this device were refused lately"
        raise Rejected("deferred", Code.QUOTA, why, STRANGER_RETRY_S)


def _result(
    of: Update | Offer, verdict: Verdict, code: Code | None = None, why: str = "", retry_in_s: int = 0
) -> Result:
    return Result(
        task=of.task,
        incarnation=of.incarnation,
        seq=of.seq,
        verdict=verdict,
        code=code or "",
        why=why[:400],
        retry_in_s=retry_in_s,
    )
