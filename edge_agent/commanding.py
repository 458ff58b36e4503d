"""Commands of the gateway: believed, written down, carried out, answered.

    twin/desired names it -> its signed word comes -> on the disk as `executing` -> told -> carried out
    -> on the disk with its outcome -> told -> the gateway clears it -> twin/desired names it no more -> forgotten

What `twin/desired` does not name is refused, however well it is signed: an old command played again is none. One that
is on the disk is not begun again, however often the broker brings it; it is told again how far it is. After a kill in
the middle a command is either carried out again, which does no harm, or has failed: `Rule.again`.

A new command is a `Rule` here, a row in `fl_protocol/device_commands.py`, and whoever carries it out calls `end`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edge_agent.commands import KeptCommand
from edge_agent.events import (
    Effect,
    EraseExamples,
    ExamplesErased,
    ForgetCommand,
    LogRead,
    Measure,
    Note,
    ReadLog,
    SaveCommand,
    Send,
    Subscribe,
    Unsubscribe,
)
from edge_agent.identity import Identity
from edge_agent.pausing import Pausing
from fl_protocol.adjustable import Value
from fl_protocol.codec import parse_json
from fl_protocol.device_commands import DEFAULT_LINES, UPDATE, read_arguments
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.messages import CommandProgress, CommandStatus, Desired, DeviceCommand, Health
from fl_protocol.signing import unseal
from fl_protocol.topics import Kind, Topic
from fl_protocol.transport import Delivery

NEVER = float("inf")
TOLD = frozenset({"executing", "successful", "failed", "rejected"})  # by a device


@dataclass(frozen=True)
class Rule:
    """How a command is carried out. `again`: also after a kill in its midst; else it has failed then."""

    begin: Callable[["Commanding", str, Mapping[str, Value]], None]
    again: bool


class Commanding:
    """`hurried` are the `train-now` that wait for a training, `reports` wait for the sensors, `updates` of the agent
    are with `Releases`: SHA-256 and bytes by cid. `emit` takes effects."""

    def __init__(
        self,
        identity: Identity,
        kept: tuple[KeptCommand, ...],
        pausing: Pausing,
        emit: Callable[[Effect], None],
        fleet_key: Callable[[], str],
    ) -> None:
        self._identity, self.emit, self.pausing, self._fleet_key = identity, emit, pausing, fleet_key
        self._open: dict[str, str] = {}  # cid -> name, by the newest `twin/desired`
        self._kept = {command.cid: command for command in kept}
        self._unsaved: set[str] = set()  # of those, what the disk has not yet
        self._begun: set[str] = set()  # in this process
        self._ends_at: dict[str, float] = {}
        self._connected = self._announced = self._resumed = False
        self.hurried: set[str] = set()
        self.reports: set[str] = set()
        self.updates: dict[str, tuple[str, int]] = {}
        self.local_s: float | None = None  # the local clock, as it was measured last
        self.waits_for = ""  # what `train-now` does, for people
        self.update_waits_for = ""
        self.now = 0.0

    @property
    def wake_at(self) -> float:
        """When the next deadline is over."""
        return min(self._ends_at.values(), default=NEVER)

    # --- connections ---

    def connected(self) -> None:
        """A new connection: what is retained comes with it, once more."""
        self._connected, self._announced = True, False
        if self._open:
            self.emit(Subscribe(tuple((self._topic(cid), 1) for cid in sorted(self._open))))

    def disconnected(self) -> None:
        """What happens now is told later."""
        self._connected = False

    def _resume(self) -> None:
        """A start: see to what the last process was in the middle of."""
        for command in list(self._kept.values()):
            if command.progress.final:
                continue
            rule = RULES.get(command.name)
            if rule is not None and rule.again:
                self._begin(command)
            else:
                self.end(command.cid, "failed", "the agent ended in the middle of it", Code.COMMAND)

    # --- what the gateway says ---

    def take_desired(self, desired: Desired | None) -> None:
        """These commands are open, and no other. A cleared topic, signed by nobody, says nothing."""
        if desired is None:
            return
        before, self._open = self._open, dict(desired.commands or {})
        for cid in [cid for cid in self._kept if cid not in self._open]:
            self._forget(cid)
        if gone := sorted(set(before) - set(self._open)):
            self.emit(Unsubscribe(tuple(self._topic(cid, before[cid]) for cid in gone)))
        if new := sorted(set(self._open) - set(before)):
            self.emit(Subscribe(tuple((self._topic(cid), 1) for cid in new)))
        if self._connected and not self._announced:
            self._announced = True
            for cid in self._kept:
                self._tell(cid)

    def hear(self, topic: Topic, delivery: Delivery, now: float) -> None:
        """A command; or the device's own word on it, which is passed over, as is a cleared topic.

        Raises `ProtocolError`: E_SIG, E_SCHEMA, E_SIZE, and E_DOWNGRADE for one that is not open, or is older.
        """
        if not delivery.payload:
            return
        plain = parse_json(delivery.payload)
        if isinstance(plain, dict) and "sig" not in plain and plain.get("status") in TOLD:
            return
        key, fleet, cid = self._fleet_key(), self._identity.fleet, topic.cid
        command = unseal(DeviceCommand, delivery.payload, key, fleet, delivery.topic)
        if self._open.get(cid) != topic.name:
            raise ProtocolError(Code.DOWNGRADE, f"the command {topic.name} {cid} is not an open one")
        kept = self._kept.get(cid)
        if kept is not None and command.counter < kept.counter:
            raise ProtocolError(Code.DOWNGRADE, f"counter {command.counter} after {kept.counter}")
        if kept is None or not (kept.progress.final or kept.note):
            self._ends_at[cid] = now + command.deadline_s
        if kept is not None:
            self._kept[cid] = replace(kept, counter=command.counter)
            self._tell(cid)
            return
        progress = CommandProgress(status="executing")
        try:
            read_arguments(topic.name, command.arguments)
            if topic.name not in RULES:
                raise ConfigError(f"unknown command {topic.name}", "this device's software does not have it")
        except ConfigError as error:
            why = f"{error.message}: {error.hint}"[:400]
            progress = CommandProgress(status="rejected", code=Code.COMMAND, why=why)
        self.emit(Note("info", f"command {topic.name} {cid}: {progress.status} {progress.why}".rstrip()))
        self._keep(KeptCommand(cid, topic.name, command.counter, command.arguments, progress))

    # --- how it goes on ---

    def saved(self, command: KeptCommand) -> None:
        """The disk has it: it is told, and begun."""
        kept = self._kept.get(command.cid)
        if kept is None or kept.progress != command.progress:
            return
        self._unsaved.discard(command.cid)
        self._tell(command.cid)
        if not command.progress.final and command.cid not in self._begun:
            self._begin(command)

    def end(
        self,
        cid: str,
        status: CommandStatus,
        why: str = "",
        code: Code | None = None,
        *,
        lines: tuple[str, ...] | None = None,
        health: Health | None = None,
    ) -> None:
        """It is over; nothing for one that is over already, or is not open any more."""
        kept = self._kept.get(cid)
        self.hurried.discard(cid)
        self.reports.discard(cid)
        self.updates.pop(cid, None)
        self._ends_at.pop(cid, None)
        if kept is None or kept.progress.final:
            return
        progress = CommandProgress(status=status, code=code or "", why=why[:400], lines=lines, health=health)
        self.emit(Note("info", f"command {kept.name} {cid}: {status} {why}".rstrip()))
        self._keep(replace(kept, progress=progress))

    def note_of(self, cid: str) -> str:
        """What was noted of it."""
        return self._kept[cid].note

    def note(self, cid: str, note: str, why: str) -> None:
        """It has come to a step that is not taken back: `note` is kept for a restart, and no deadline ends it here."""
        self._ends_at.pop(cid, None)
        kept = self._kept[cid]
        self.emit(Note("info", f"command {kept.name} {cid}: {why}"))
        self._keep(replace(kept, note=note, progress=replace(kept.progress, why=why)))

    def end_hurried(self, status: CommandStatus, why: str, code: Code | None = None) -> None:
        """What became of the training that `train-now` asked for."""
        for cid in sorted(self.hurried):
            self.end(cid, status, why, code)

    def answered(self, event: LogRead | ExamplesErased) -> None:
        """What the service was asked for is done."""
        match event:
            case LogRead(cid, lines):
                self.end(cid, "successful", lines=lines)
            case ExamplesErased(cid, num_examples, why, ours):
                if why:
                    self.end(cid, "failed" if ours else "rejected", why, Code.COMMAND)
                else:
                    self.end(cid, "successful", f"{num_examples} examples erased")

    def measured(self, health: Health) -> None:
        """The sensors were read."""
        for cid in sorted(self.reports):
            self.end(cid, "successful", health=health)

    def expire(self, now: float) -> None:
        """It is `now`: what could not be done in time has failed."""
        self.now = now
        if not self._resumed:
            self._resumed = True
            self._resume()
        for cid in [cid for cid, at in self._ends_at.items() if now >= at]:
            why = self.waits_for if cid in self.hurried else self.update_waits_for if cid in self.updates else ""
            waits = f": {why}" if why else ""
            self.end(cid, "failed", f"it was not done in time{waits}", Code.DEADLINE)

    # --- inside ---

    def _keep(self, command: KeptCommand) -> None:
        self._kept[command.cid] = command
        self._unsaved.add(command.cid)
        self.emit(SaveCommand(command))

    def _forget(self, cid: str) -> None:
        del self._kept[cid]
        self._ends_at.pop(cid, None)
        self.updates.pop(cid, None)
        for some in (self._unsaved, self._begun, self.hurried, self.reports):
            some.discard(cid)
        self.emit(ForgetCommand(cid))

    def _begin(self, command: KeptCommand) -> None:
        self._begun.add(command.cid)
        RULES[command.name].begin(self, command.cid, read_arguments(command.name, command.arguments))

    def _tell(self, cid: str) -> None:
        kept = self._kept[cid]
        if self._connected and cid not in self._unsaved and self._open.get(cid) == kept.name:
            self.emit(Send(self._topic(cid), kept.progress, retain=True))

    def _topic(self, cid: str, name: str = "") -> str:
        return self._identity.topic(Kind.DEVICE_COMMAND, name=name or self._open[cid], cid=cid)


# --- what each command does --------------------------------------------------------------------------------------


def _train_now(at: Commanding, cid: str, _: Mapping[str, Value]) -> None:
    at.hurried.add(cid)


def _pause(at: Commanding, cid: str, arguments: Mapping[str, Value]) -> None:
    minutes = arguments.get("minutes")
    assert minutes is None or isinstance(minutes, float)
    at.pausing.begin(minutes, at.local_s, at.now)
    at.end(cid, "successful", "until resumed" if minutes is None else f"for {minutes:g} minutes")


def _resume(at: Commanding, cid: str, _: Mapping[str, Value]) -> None:
    at.end(cid, "successful", "" if at.pausing.end() else "it was not paused")


def _collect_logs(at: Commanding, cid: str, arguments: Mapping[str, Value]) -> None:
    lines = arguments.get("lines", DEFAULT_LINES)
    assert isinstance(lines, int | float)
    at.emit(ReadLog(cid, int(lines)))


def _forget_data(at: Commanding, cid: str, _: Mapping[str, Value]) -> None:
    at.emit(EraseExamples(cid))


def _report(at: Commanding, cid: str, _: Mapping[str, Value]) -> None:
    at.reports.add(cid)
    at.emit(Measure())


def _update_agent(at: Commanding, cid: str, arguments: Mapping[str, Value]) -> None:
    sha256, size = arguments["sha256"], arguments["size"]
    assert isinstance(sha256, str)
    assert isinstance(size, int | float)
    at.updates[cid] = sha256, int(size)


RULES: Mapping[str, Rule] = {
    "train-now": Rule(_train_now, again=False),  # a training costs: at most once
    "pause": Rule(_pause, again=True),  # its minutes begin anew
    "resume": Rule(_resume, again=True),
    "collect-logs": Rule(_collect_logs, again=True),
    "forget-data": Rule(_forget_data, again=True),  # what was promised is done
    "report": Rule(_report, again=True),
    UPDATE: Rule(_update_agent, again=True),  # goes on from what was noted
}
