"""What devices are told to do, and how they are to be configured. A part of the gateway's heart: no I/O, no clock.

A command is open from its asking to the device's last word, or to its deadline; so long its signed word is retained on
its own topic, and `twin/desired` names it. A device that starts, or a broker that has forgotten all, hears it again.
What is wanted of all devices and of one are kept apart; a device is told the first with the second above it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker_aggregator.events import (
    Clear,
    Effect,
    Note,
    RemoveCommand,
    SaveCommand,
    SaveConfiguration,
    SaveState,
    Send,
)
from broker_aggregator.fleet import CommandRecord, Configuration, Device
from fl_protocol.adjustable import read_value
from fl_protocol.codec import to_plain
from fl_protocol.device_commands import UPDATE, read_arguments
from fl_protocol.errors import Code, ConfigError, ProtocolError
from fl_protocol.messages import MAX_COMMANDS, CommandProgress, DeviceCommand, Reported
from fl_protocol.topics import Kind, Topic

if TYPE_CHECKING:
    from broker_aggregator.coordinator import Coordinator

KEPT_COMMANDS = 50  # of a device, that are over
ALL = "*"  # whose configuration every device has; no device is called so


@dataclass
class Commanding:
    """`commands` by cid, `configurations` by device, and `ALL`."""

    commands: dict[str, CommandRecord] = field(default_factory=dict)
    configurations: dict[str, Configuration] = field(default_factory=dict)
    _open: dict[str, dict[str, None]] = field(default_factory=dict)  # device -> cids, oldest first
    _over: dict[str, dict[str, None]] = field(default_factory=dict)  # the same of those that have ended
    _moved: list[str] = field(default_factory=list)  # updates of the agent that began or ended, by cid

    def __post_init__(self) -> None:
        for command in sorted(self.commands.values(), key=lambda c: c.asked_ms):
            if command.open:
                self._open.setdefault(command.device, {})[command.id] = None
        for command in sorted(self.commands.values(), key=lambda c: c.ended_ms):
            if not command.open:
                self._over.setdefault(command.device, {})[command.id] = None

    def open_of(self, device: str) -> dict[str, str]:
        """The open commands of a device, cid -> name."""
        return {cid: self.commands[cid].name for cid in self._open.get(device, ())}

    def configuration_of(self, device: str) -> Configuration | None:
        """What is wanted of a device; None where nothing was ever said."""
        both = [kept for name in (ALL, device) if (kept := self.configurations.get(name)) is not None]
        if not both:
            return None
        wanted = {key: text for kept in both for key, text in kept.settings.items()}
        return Configuration(device, max(kept.revision for kept in both), wanted)

    # --- what the operator asks ---

    def ask(
        self,
        at: "Coordinator",
        device: str,
        name: str,
        arguments: Mapping[str, str],
        deadline_s: int,
        cid: str,
        now_ms: int,
    ) -> Iterator[Effect]:
        """A new command. Raises `ConfigError` for one that cannot be, or one too many."""
        read_arguments(name, arguments)
        try:
            str(self._topic(at, device, name, cid))
        except ProtocolError as error:
            raise ConfigError(error.message, "ids are 1..64 of a-z, 0-9 and -") from None
        if cid in self.commands:
            raise ConfigError(f"there is a command {cid} already", "each command has its own id")
        if len(self._open.get(device, ())) >= MAX_COMMANDS:
            raise ConfigError(
                f"{device} has {MAX_COMMANDS} open commands", "`device commands` lists them; wait for their deadlines"
            )
        if name == UPDATE and UPDATE in self.open_of(device).values():
            raise ConfigError(f"an update of {device} is under way", "`device commands` says how far it is")
        command = CommandRecord(
            id=cid,
            device=device,
            name=name,
            arguments=dict(arguments),
            asked_ms=now_ms,
            deadline_ms=now_ms + deadline_s * 1000,
        )
        self.commands[cid] = command
        self._open.setdefault(device, {})[cid] = None
        yield SaveCommand(command)
        yield at.say.desired(device, at.tasks)
        yield self._send(at, command, now_ms)

    def configure(
        self, at: "Coordinator", device: str, changes: Mapping[str, str | None], revision: int
    ) -> Iterator[Effect]:
        """Want something else of a device, or of `ALL`; None: what the device's own file says. Raises `ConfigError`."""
        for key, text in changes.items():
            if text is not None:
                read_value(key, text)
        before = self.configurations.get(device, Configuration(device, 0, {}))
        settings = dict(before.settings)
        for key, text in changes.items():
            if text is not None:
                settings[key] = text
            elif settings.pop(key, None) is None:
                known = ", ".join(sorted(before.settings)) or "nothing"
                raise ConfigError(f"{key} is not set from here, so it cannot be taken back", f"set from here: {known}")
        self.configurations[device] = Configuration(device, revision, settings)
        yield SaveConfiguration(self.configurations[device])
        if device == ALL:
            yield from at.desired_of_all()
        else:
            yield at.say.desired(device, at.tasks)

    @property
    def next_revision(self) -> int:
        """One more than any before, of whatever device: so each device's own only grows."""
        return max((kept.revision for kept in self.configurations.values()), default=0) + 1

    def revoked(self, at: "Coordinator", device: str, now_ms: int) -> Iterator[Effect]:
        """The device is none any more."""
        for cid in list(self._open.get(device, ())):
            why = CommandProgress(status="failed", code=Code.AUTH, why="the device was revoked")
            yield from self._close(at, self.commands[cid], why, now_ms)

    def withdraw(self, at: "Coordinator", cid: str, why: str, now_ms: int) -> Iterator[Effect]:
        """It is not to be done any more; nothing for one that is over. A device that has not begun never will."""
        command = self.commands.get(cid)
        if command is not None and command.open:
            yield from self._close(at, command, CommandProgress(status="failed", code=Code.COMMAND, why=why), now_ms)
            yield at.say.desired(command.device, at.tasks)

    def take_moved(self) -> list[str]:
        """The updates of the agent that began or ended since this was asked last, by cid."""
        moved, self._moved = self._moved, []
        return moved

    # --- what devices say ---

    def progress(
        self, at: "Coordinator", device: Device, topic: Topic, said: CommandProgress, now_ms: int
    ) -> Iterator[Effect]:
        """How far a command is. A word on none that is open is taken off the topic."""
        command = self.commands.get(topic.cid)
        if command is None or (command.device, command.name) != (device.id, topic.name) or not command.open:
            yield Clear(topic)
        elif said.final:
            yield from self._close(at, command, said, now_ms)
            yield at.say.desired(device.id, at.tasks)
        elif (command.status, command.why) != (said.status, said.why):
            self.commands[command.id] = replace(command, status=said.status, why=said.why)
            self._move(command)
            yield SaveCommand(self.commands[command.id])

    def reported(self, device: Device, reported: Reported) -> Iterator[Effect]:
        """What configuration a device has."""
        yield SaveState(device.id, reported)
        if reported.refused is not None:
            yield Note("warning", f"{device.id} refuses configuration {reported.refused}: {reported.why}")

    def born(self, at: "Coordinator", device: str, now_ms: int) -> Iterator[Effect]:
        """A device has started, or connected anew: what is open is said again, with the time that is left."""
        for cid in self._open.get(device, ()):
            yield self._send(at, self.commands[cid], now_ms)

    def online(self, at: "Coordinator", now_ms: int) -> Iterator[Effect]:
        """The broker may have forgotten what is open."""
        for device in list(self._open):
            yield from self.born(at, device, now_ms)

    def expire(self, at: "Coordinator", now_ms: int) -> Iterator[Effect]:
        """What was not answered in time has failed."""
        late = [c for cids in self._open.values() for cid in cids if now_ms >= (c := self.commands[cid]).deadline_ms]
        for command in late:
            seconds = (command.deadline_ms - command.asked_ms) // 1000
            began = "began, and did not end" if command.status == "executing" else "did not answer"
            why = CommandProgress(status="failed", code=Code.DEADLINE, why=f"the device {began} within {seconds} s")
            yield from self._close(at, command, why, now_ms)
        for device in sorted({command.device for command in late}):
            if (known := at.fleet.devices.get(device)) and not known.revoked:
                yield at.say.desired(device, at.tasks)

    # --- inside ---

    def _close(self, at: "Coordinator", command: CommandRecord, said: CommandProgress, now_ms: int) -> Iterator[Effect]:
        closed = replace(
            command,
            status=said.status,
            code=said.code,
            why=said.why,
            lines=None if said.lines is None else list(said.lines),
            health=None if said.health is None else to_plain(said.health),
            ended_ms=now_ms,
        )
        self.commands[command.id] = closed
        self._move(command)
        self._open[command.device].pop(command.id)
        if not self._open[command.device]:
            del self._open[command.device]
        yield SaveCommand(closed)
        yield Clear(self._topic(at, command.device, command.name, command.id))
        yield Note("info", f"{command.device}: command {command.name} {command.id}: {said.status} {said.why}".rstrip())
        over = self._over.setdefault(command.device, {})
        over[command.id] = None
        for old in list(over)[:-KEPT_COMMANDS]:
            del self.commands[old], over[old]
            yield RemoveCommand(old)

    def _move(self, command: CommandRecord) -> None:
        if command.name == UPDATE:
            self._moved.append(command.id)

    def _send(self, at: "Coordinator", command: CommandRecord, now_ms: int) -> Send:
        left_s = max(1, (command.deadline_ms - now_ms) // 1000)
        message = DeviceCommand(arguments=command.arguments, deadline_s=left_s)
        return Send(self._topic(at, command.device, command.name, command.id), message, retain=True)

    @staticmethod
    def _topic(at: "Coordinator", device: str, name: str, cid: str) -> Topic:
        return at.say.topic(Kind.DEVICE_COMMAND, device=device, name=name, cid=cid)
