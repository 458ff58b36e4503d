"""The only impure loop: transport + store + clock around the coordinator.

A turn: take what came (for at most `commit_ms`, or a full window), let the coordinator decide, commit what must be
durable in one transaction, and only then acknowledge and publish. What fails durably ends the process: a restart
replays the store, and the broker delivers again what was not acknowledged. The simulator turns this same loop with a
store, a clock and a transport of its own.
"""

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

from broker_aggregator.agent_releases import read_release
from broker_aggregator.commanding import Commanding
from broker_aggregator.config import GatewayConfig
from broker_aggregator.coordinator import UPLOAD_BYTES, UPLOAD_TTL_S, Coordinator
from broker_aggregator.enrollment import Admission, Enrollment
from broker_aggregator.events import (
    Asked,
    Claimed,
    Clear,
    CloseSession,
    DropParts,
    Durable,
    Effect,
    Evaluate,
    Event,
    Gone,
    Note,
    Online,
    Progressed,
    Received,
    Release,
    RotateKey,
    SaveCounter,
    SaveDevice,
    Send,
    SendDelta,
    SendObject,
    Tick,
    WriteRevocations,
)
from broker_aggregator.keyring import Keyring
from broker_aggregator.machine import REAL, Connect, Machine, connect_to_broker
from broker_aggregator.measuring import Measuring, ThreadMeasuring
from broker_aggregator.objects import Objects
from broker_aggregator.operations import NEED_BUNDLE, OPERATOR, OPERATOR_DONE, ROLLBACK, SIGNED, versions_of
from broker_aggregator.pki import Pki
from broker_aggregator.restoring import Loaded
from broker_aggregator.rolling import Rolling
from broker_aggregator.rollout import KeptRelease
from broker_aggregator.rollout_operations import ROLLOUT_START
from broker_aggregator.sessions import close_session
from broker_aggregator.storage import Store
from fl_protocol.bundle import Bundle
from fl_protocol.codec import decode, decode_as, encode, parse_json
from fl_protocol.enrolling import claim_secret
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.heartbeat import Heartbeat
from fl_protocol.messages import Ask, Certified, CommandProgress, Delta, Enroll, GatewayState, Result, Signed
from fl_protocol.parts import FileParts
from fl_protocol.signing import SigningKey, seal, unseal
from fl_protocol.topics import Kind, Topic, below, build, parse
from fl_protocol.transfer import Inbox, Parts
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Undeliverable, Will

log = logging.getLogger("aggregator")
SOFTWARE = "anabranch-gateway/0.1.0"
TICK_S = 0.25
COMMAND_MS = 60_000  # commands are counted in microseconds of the operator's clock: older ones have expired
POISON = 2  # crashes with the same delivery in hand
DURABLE = get_args(Durable)
UPLOADS = "uploads"  # the directory of updates in the making, beside the store
NOBODY = "0" * 16  # the incarnation in an answer to what could not be read


@dataclass(frozen=True)
class _Given:
    """A delivery to be acknowledged once its batch is durable."""

    receipt: object


class Service:
    """One gateway on one store. Raises `ConfigError` for broker settings that can never work."""

    def __init__(
        self,
        config: GatewayConfig,
        store: Store,
        key: SigningKey | Keyring,
        *,
        connect: Connect = connect_to_broker,
        objects: Objects | None = None,
        measuring: Measuring | None = None,
        machine: Machine = REAL,
        parts: Parts | None = None,
        close_session: Callable[[GatewayConfig, str], object] = close_session,
    ) -> None:
        self.config, self.store, self._machine = config, store, machine
        self._keyring = key if isinstance(key, Keyring) else Keyring(key)
        self._close_session = close_session
        self.fleet = config.gateway.fleet
        with store.transaction():
            self.boot = store.next_counter("boot")
        loaded = store.load(machine.monotonic())
        self._floor = loaded.counters.get(SIGNED, 0)
        self.coordinator = Coordinator(
            self.fleet,
            loaded.fleet,
            loaded.tasks,
            operator_counter=loaded.counters.get(OPERATOR, 0),
            operator_done=loaded.counters.get(OPERATOR_DONE, 0),
            last_versions=versions_of(loaded.counters),
            commanding=Commanding(loaded.commands, loaded.configurations),
            rolling=Rolling(loaded.rollouts, loaded.attempts),
            min_free_bytes=config.gateway.min_free_mb << 20,
            inbox=Inbox(
                UPLOAD_BYTES,
                UPLOAD_TTL_S,
                parts=parts or FileParts(config.gateway.data_dir / UPLOADS),
                now=machine.monotonic(),
            ),
        )
        self._pki = Pki(config.enrollment.pki) if config.enrollment.pki else None
        if self._pki is not None:
            self.coordinator.enrollment = self._enrollment(self._pki, loaded)
        self.objects = objects or Objects(config.bundles, store, releases=config.agent_releases)
        self._measuring = measuring or ThreadMeasuring(self.objects.evaluator)
        self.refused: Counter[str] = Counter()  # messages that could not be read, by code
        self._suspects = store.suspects()
        self._devices = below(self.fleet, "dev").removesuffix("#")
        self._ticked = float("-inf")
        self._let_in(config.devices)
        self._connected = False
        self.transport = connect(config, self._will)
        self._hold_rollouts()

    @property
    def key(self) -> SigningKey:
        """The fleet's."""
        return self._keyring.key

    def _enrollment(self, pki: Pki, loaded: Loaded) -> Enrollment:
        """Claims and certificates as the store has them, and the broker's list as they say."""
        section = self.config.enrollment
        enrollment = Enrollment(
            pki,
            lambda claim: claim_secret(self.key, self.fleet, claim),
            Admission(section.approve, frozenset(section.hardware), section.certificate_days),
            loaded.claims,
            loaded.certificates,
        )
        self._write_revocations(pki, enrollment.revocations())  # a process may have fallen just before
        return enrollment

    def _write_revocations(self, pki: Pki, effect: WriteRevocations) -> None:
        pki.revoke(effect.revoked, self._machine.now_ms())

    def _hold_rollouts(self) -> None:
        """Nobody is sent for a release that is not on the shelf: a backup has none."""
        for rollout in list(self.coordinator.rolling.rollouts.values()):
            if rollout.state == "running" and not (self.config.agent_releases / rollout.release.sha256).is_file():
                why = f"release {rollout.release.number} is not on the shelf: `release add` it, then `rollout resume`"
                self._carry_out(self.coordinator.rolling.pause(rollout.id, why))

    def _let_in(self, devices: dict[str, str]) -> None:
        """The devices that the configuration names, on top of those that the store knows."""
        known = self.coordinator.fleet.devices
        new = {d: key for d, key in devices.items() if d not in known or known[d].public_key != key}
        with self.store.transaction():
            for device, key in new.items():
                self.store.apply(SaveDevice(device, key), self._machine.now_ms())
        if new:
            self.coordinator.fleet = self.store.load(self._machine.monotonic()).fleet

    def _will(self, bseq: int) -> Will:
        return Will(build(Kind.GATEWAY, self.fleet), encode(GatewayState(state="lost", boot=self.boot, bseq=bseq)))

    # --- the loop ---

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stopping` is set. Raises whatever made a durable write fail."""
        host, port = self.config.broker.address
        heartbeat = Heartbeat()
        log.info("fleet %s, broker %s:%d, fleet key %s", self.fleet, host, port, self.key.public)
        self.transport.start()
        try:
            while not stopping.is_set():
                self.turn(TICK_S)
                heartbeat.beat(self._connected)
        finally:
            self._publish_state(GatewayState(state="disconnected", boot=self.boot, bseq=0))
            self.transport.close()
            self._measuring.stop()

    def turn(self, timeout: float) -> None:
        """One batch: decide, commit, and only then let it be seen."""
        effects: list[Effect | _Given] = []
        for incoming in self._batch(timeout):
            effects.extend(self._take(incoming))
        for news in self._measuring.news():
            effects.extend([news] if isinstance(news, Note) else self._decide(news))
        if self._machine.monotonic() - self._ticked >= TICK_S:
            self._ticked = self._machine.monotonic()
            free_bytes = self._machine.free_bytes(self.config.gateway.data_dir)
            effects.extend(self._decide(Tick(free_bytes, self._machine.now_ms())))
        self._carry_out(effects)

    def _batch(self, timeout: float) -> list[Incoming]:
        """What came; company is waited for as long as a commit may be late."""
        batch = self.transport.receive(timeout)
        clock = self._machine.monotonic
        until = clock() + self.config.gateway.commit_ms / 1000
        while batch and len(batch) < self.config.gateway.receive_maximum and (left := until - clock()) > 0:
            batch.extend(self.transport.receive(left))
        return batch

    def _decide(self, event: Event) -> Iterator[Effect]:
        yield from self.coordinator.handle(event, self._machine.monotonic())

    # --- what comes in ---

    def _take(self, incoming: Incoming) -> Iterator[Effect | _Given]:
        match incoming:
            case Connected(present, bseq, limits):
                self._connected = True
                self.transport.subscribe(self._subscriptions())
                self._publish_state(GatewayState(state="ready", boot=self.boot, bseq=bseq, fleet_key=self.key.public))
                self._publish_chain()
                log.info("connected (MQTT %s, packets up to %d bytes)", limits.version, limits.max_packet)
                now_ms = self._machine.now_ms()
                yield from self._decide(Online(present, limits.max_packet, limits.version, now_ms))
            case Disconnected(reason, retry_in_s):
                self._connected = False
                host, port = self.config.broker.address
                log.warning("no broker at %s:%d: %s; trying again in %.0f s", host, port, reason, retry_in_s)
            case Undeliverable(topic, size, reason):
                log.error("dropped %d bytes for %s: %s", size, topic, reason)
            case Delivery():
                yield from self._deliver(incoming)

    def _subscriptions(self) -> list[tuple[str, int]]:
        kinds = Kind.STATE, Kind.INFO, Kind.EVENT, Kind.REPORTED
        per_device = [build(kind, self.fleet, device="+") for kind in kinds]
        per_device.append(build(Kind.DEVICE_COMMAND, self.fleet, device="+", name="+", cid="+"))
        commands = build(Kind.COMMAND, self.fleet, name="+", cid="+")
        claims = [build(Kind.ENROLL, self.fleet, claim="+")] if self._pki is not None else []
        return [(topic, 1) for topic in (*per_device, below(self.fleet, "dev", "+", "up"), commands, *claims)]

    def _deliver(self, delivery: Delivery) -> Iterator[Effect | _Given]:
        digest = hashlib.sha256(delivery.topic.encode() + b"\0" + delivery.payload).hexdigest()
        if self._suspects.get(digest, 0) >= POISON:
            self.objects.quarantine(digest, delivery.topic, delivery.payload)
            yield Note("error", f"a message on {delivery.topic} was in hand at {POISON} crashes: quarantined")
        elif self._is_litter(delivery):
            self._publish(delivery.topic, b"", retain=True)
        else:
            try:
                yield from list(self._read(delivery))
            except ProtocolError as error:
                yield from self._refuse(delivery, error)
            except Exception:
                self.store.suspect(digest)
                raise
        if delivery.receipt is not None:
            yield _Given(delivery.receipt)

    def _is_litter(self, delivery: Delivery) -> bool:
        """Whether a device left it on a topic of commands where none is open, whatever it says.

        Such topics are as many as a device can name, so what lies there would fill the broker's memory.
        """
        match delivery.topic.removeprefix(self._devices).split("/"):
            case [device, "cmd", name, cid]:
                return bool(delivery.payload) and self.coordinator.commanding.open_of(device).get(cid) != name
        return False

    def _read(self, delivery: Delivery) -> Iterator[Effect]:
        """Bytes -> message -> decision. Raises `ProtocolError` for what cannot be read."""
        topic = parse(delivery.topic)
        if topic.fleet != self.fleet:
            raise ProtocolError(Code.SCHEMA, f"{delivery.topic} is another fleet's")
        if topic.kind is Kind.COMMAND:
            yield from self._command(topic, delivery)
        elif topic.kind is Kind.DEVICE_COMMAND:
            yield from self._progress(topic, delivery)
        elif topic.kind is Kind.STATE and not delivery.payload:
            yield from self._decide(Gone(topic.device))
        elif topic.kind is Kind.ENROLL:
            yield from self._decide(Claimed(topic.claim, decode_as(Enroll, delivery.payload), self._machine.now_ms()))
        elif delivery.payload:
            message = decode(topic.kind, delivery.payload)
            num_bytes, now_ms = len(delivery.topic) + len(delivery.payload), self._machine.now_ms()
            yield from self._decide(Received(topic.device, message, num_bytes, now_ms))  # type: ignore[arg-type]

    def _command(self, topic: Topic, delivery: Delivery) -> Iterator[Effect]:
        plain = parse_json(delivery.payload) if delivery.payload else {}
        if (isinstance(plain, dict) and "sig" not in plain and "status" in plain) or not plain:
            return  # our own answer, or its creator clearing it
        ask = unseal(Ask, delivery.payload, self.key.public, self.fleet, delivery.topic)
        if ask.name != topic.name:
            raise ProtocolError(Code.SCHEMA, f"the command {ask.name} came on the topic of {topic.name}")
        if self._machine.now_ms() - ask.counter // 1000 > COMMAND_MS:
            yield Note("warning", f"operator: {ask.name}: came {COMMAND_MS // 1000} s late, not obeyed")
            return  # it was asked while no gateway ran, and its operator was told that nobody answered
        bundle = self._bundle_of(ask) if ask.name in NEED_BUNDLE else None
        release = self._release_of(ask) if ask.name == ROLLBACK else None
        agent_release = self._agent_release_of(ask) if ask.name == ROLLOUT_START else None
        yield from self._decide(Asked(ask, topic.cid, bundle, release, self._machine.now_ms(), agent_release))

    def _progress(self, topic: Topic, delivery: Delivery) -> Iterator[Effect]:
        """A device's word on a command; our own, which is signed, and a cleared topic are passed over."""
        plain = parse_json(delivery.payload) if delivery.payload else {}
        if plain and not (isinstance(plain, dict) and "sig" in plain):
            said = decode_as(CommandProgress, delivery.payload)
            yield from self._decide(Progressed(topic, said, self._machine.now_ms()))

    def _release_of(self, ask: Ask) -> Release | None:
        """The earlier version that a command names, or the best measured of the task's model; None without one."""
        task = self.coordinator.tasks.get(str(ask.arguments.get("task")))
        if task is None:
            return None
        values, named = self.store.values(task.plan.task), ask.arguments.get("to")
        if named is not None:
            return self.store.release(task.plan.task, named) if isinstance(named, int) and named in values else None
        sign = 1 if task.measured.better == "higher" else -1
        best_first = sorted((-sign * value, -version) for version, value in values.items() if value is not None)
        for _, version in best_first:
            release = self.store.release(task.plan.task, -version)
            if release.fingerprint == task.release.fingerprint:
                return release
        return None

    def _agent_release_of(self, ask: Ask) -> KeptRelease | None:
        """The release that a roll-out names, checked once more; None where it is missing, or no release of ours."""
        path = self.config.agent_releases / str(ask.arguments.get("sha256"))
        try:
            kept = read_release(path, self.key.public, self.fleet)
        except ConfigError as error:
            log.error("%s", error.message)
            return None
        return kept if kept.sha256 == path.name else None

    def _bundle_of(self, ask: Ask) -> Bundle | None:
        """The bundle that a command names, or that its task has; None where it is missing or has rotted."""
        sha256 = ask.arguments.get("bundle_sha256")
        task = self.coordinator.tasks.get(str(ask.arguments.get("task")))
        if sha256 is None and task is not None:
            sha256 = task.plan.bundle_sha256
        try:
            return self.objects.bundle(sha256) if isinstance(sha256, str) else None
        except ProtocolError as error:
            log.error("bundle %s: %s", sha256, error)
            return None

    def _refuse(self, delivery: Delivery, error: ProtocolError) -> Iterator[Effect]:
        """Counted, answered where there is somebody to answer, and forgotten."""
        self.refused[error.code] += 1
        yield Note("warning", f"{delivery.topic:.200}: {error}")
        try:
            topic = parse(delivery.topic)
        except ProtocolError:
            return
        if topic.device in self.coordinator.fleet.devices and topic.kind in (Kind.UPDATE, Kind.OFFER):
            answer = Result(
                task="unread", incarnation=NOBODY, seq=0, verdict="rejected", code=error.code, why=error.message[:400]
            )
            yield Send(Topic(Kind.RESULT, self.fleet, device=topic.device), answer)

    # --- what goes out ---

    def _carry_out(self, effects: Iterable[Effect | _Given]) -> None:
        """All that is durable in one transaction, counters of signed messages included; then all that is visible."""
        effects = list(effects)
        if (at := next((i for i, e in enumerate(effects) if isinstance(e, RotateKey)), None)) is not None:
            self._carry_out(effects[:at])
            self._rotate()
            self._carry_out(effects[at + 1 :])
            return
        outgoing: list[tuple[str, bytes, bool]] = []
        ts = self._machine.now_ms()
        if any(isinstance(e, DURABLE) or (isinstance(e, Send) and isinstance(e.message, Signed)) for e in effects):
            with self.store.transaction():
                for effect in effects:
                    if isinstance(effect, DURABLE):
                        self.store.apply(effect, ts)
                outgoing = [self._sealed(e, ts) for e in effects if isinstance(e, Send)]
        else:
            outgoing = [self._sealed(e, ts) for e in effects if isinstance(e, Send)]
        sends = iter(outgoing)
        for effect in effects:
            match effect:
                case _Given(receipt):
                    self.transport.acknowledge(receipt)
                case Send():
                    self._publish(*next(sends))
                case Clear(topic):
                    self._publish(str(topic), b"", True)
                case SendObject():
                    self._send_object(effect)
                case SendDelta():
                    self._send_delta(effect)
                case DropParts(device, sha256):
                    self.coordinator.inbox.discard(device, sha256)
                case Evaluate():
                    self._measuring.begin(effect)
                case WriteRevocations():
                    assert self._pki is not None
                    self._write_revocations(self._pki, effect)
                case CloseSession(device):
                    self._close_session(self.config, device)
                case Note(level, text):
                    log.log(logging.getLevelName(level.upper()), "%s", text)

    def _rotate(self) -> None:
        """The new key is on the disk before anybody hears of it, and heard of before it signs anything."""
        self._keyring.rotate(self.fleet)
        log.warning("the fleet's key is %s from now on: make a backup", self.key.public)
        self._publish_chain()

    def _publish_chain(self) -> None:
        if self._keyring.chain is not None:
            chain = replace(self._keyring.chain, ts=self._machine.now_ms())
            self._publish(build(Kind.KEYS, self.fleet), encode(chain), True)

    def _sealed(self, send: Send, ts: int) -> tuple[str, bytes, bool]:
        topic, message = str(send.topic), replace(send.message, ts=ts)
        if isinstance(message, Signed):
            # One counter for all claims, whose topics are not the fleet's to count; and one for all commands.
            name = send.topic.kind if send.topic.kind in (Kind.ENROLLED, Kind.DEVICE_COMMAND) else topic
            if isinstance(message, Certified) and send.topic.kind is Kind.ENROLLED:
                message = replace(message, keys=self._keyring.chain)
            message = replace(message, counter=self._next_counter(f"{SIGNED}{name}", ts))
            return topic, seal(message, self.key, self.fleet, topic), send.retain
        return topic, encode(message), send.retain

    def _next_counter(self, name: str, ts: int) -> int:
        """One more than the last, and above all that was signed before a restore."""
        counter = self.store.next_counter(name)
        if counter <= self._floor:
            counter = self._floor + 1
            self.store.apply(SaveCounter(name, counter), ts)
        return counter

    def _publish(self, topic: str, payload: bytes, retain: bool, qos: int = 1) -> None:
        try:
            self.transport.publish(topic, payload, qos=qos, retain=retain)
        except ProtocolError as error:
            log.error("cannot publish %s: %s", topic, error)

    def _publish_state(self, state: GatewayState) -> None:
        state = replace(state, software=SOFTWARE, ts=self._machine.now_ms())
        self._publish(build(Kind.GATEWAY, self.fleet), encode(state), True)

    def _send_object(self, effect: SendObject) -> None:
        if effect.data is not None:
            self.objects.deltas.keep(effect.data)
        for chunk in self.objects.chunks(effect.sha256, effect.chunk_size, effect.missing, effect.window):
            self._publish(str(effect.topic), encode(chunk), False, qos=0)

    def _send_delta(self, effect: SendDelta) -> None:
        """Its bytes too, where they fit into one packet. Silence where the version is not kept: the device asks on."""
        want = effect.want
        found = self.objects.deltas.between(effect.layout, want.base, want.sha256)
        if found is None:
            return
        base, data = found
        delta = Delta(
            task=want.task,
            sha256=want.sha256,
            base=base,
            object=self.objects.deltas.keep(data),
            size=len(data),
            chunk_size=effect.chunk_size,
            data=data if len(data) <= effect.chunk_size else b"",
        )
        self._publish(str(effect.topic), encode(delta), False, qos=0)
