"""Releases of the agent on their way to the fleet, wave by wave. A part of the gateway's heart: no I/O, no clock.

    a wave's devices -> `update-agent`, as many an hour as the operator said -> each ends, or its deadline does
        -> at most so many per cent failed, and at least one did not -> the next wave; else it stops by itself

A device that is off waits. One that did not answer at all until its deadline is `skipped`: it says nothing of the
release. One that began and was not heard of again has failed. What is asked and that it is asked are stored at one
stroke, so that a gateway that falls asks nobody twice; and a device with an open `update-agent` gets no second one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker_aggregator.events import Effect, Note, RemoveRollout, SaveAttempt, SaveRollout
from broker_aggregator.fleet import CommandRecord
from broker_aggregator.rollout import (
    OVER,
    Attempt,
    AttemptState,
    KeptRelease,
    Rollout,
    in_order,
    read_groups,
    unfit,
    wave_of,
)
from fl_protocol.device_commands import UPDATE
from fl_protocol.errors import Code, ConfigError

if TYPE_CHECKING:
    from broker_aggregator.coordinator import Coordinator

KEPT_ROLLOUTS = 20  # that are over
BURST = 50  # devices asked at once
CATCH_UP_MS = 1000  # that a rate makes up for, where it was held up
NAMED = 5  # devices that a roll-out's `why` names


@dataclass
class Rolling:
    """`rollouts` by id, `attempts` by roll-out and device."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    attempts: dict[str, dict[str, Attempt]] = field(default_factory=dict)
    _queues: dict[str, deque[str]] = field(default_factory=dict)  # of the wave under way: who waits
    _due_ms: dict[str, int] = field(default_factory=dict)  # when the next may be asked
    _by_command: dict[str, tuple[str, str]] = field(default_factory=dict)  # cid -> roll-out, device: not over
    _to_judge: set[str] = field(default_factory=set)  # roll-outs of which something has changed
    _fresh: bool = True  # since this start nothing was looked at

    def __post_init__(self) -> None:
        for rollout in self.rollouts.values():
            attempts = self.attempts.setdefault(rollout.id, {})
            for attempt in attempts.values():
                if attempt.state in ("asked", "executing"):
                    self._by_command[attempt.command] = rollout.id, attempt.device
            self._fill(rollout)
            self._to_judge.add(rollout.id)
            last = max((a.asked_ms for a in attempts.values()), default=0)
            self._due_ms[rollout.id] = last + _interval_ms(rollout)

    # --- what the operator asks ---

    def start(
        self,
        at: "Coordinator",
        id_: str,
        release: KeptRelease,
        devices: Sequence[str] | None,
        groups: Sequence[object],
        per_hour: int,
        stop_at: str,
        deadline_s: int,
        now_ms: int,
    ) -> Iterator[Effect]:
        """A new roll-out: to `devices` in their order, or to all that it fits. Raises `ConfigError`."""
        if id_ in self.rollouts:
            raise ConfigError(f"there is a roll-out {id_} already", "each has its own id")
        chosen, left_out = self._choose(at, id_, release, devices)
        busy = {d: r.id for r in self.rollouts.values() if r.open for d, a in self.attempts[r.id].items() if not a.over}
        if twice := [d for d in chosen if d in busy]:
            raise ConfigError(
                f"{twice[0]} is in the roll-out {busy[twice[0]]}",
                "stop that one, or wait for its end: `rollout status`",
            )
        ends = read_groups(groups, len(chosen))
        rollout = Rollout(id_, release, len(ends), per_hour, stop_at, deadline_s, now_ms, left_out=left_out)
        yield from self._forget_old()
        self.rollouts[id_], self.attempts[id_] = rollout, {}
        yield SaveRollout(rollout)
        for place, device in enumerate(chosen):
            if (wave := wave_of(ends, place)) < len(ends):
                yield self._save(Attempt(id_, device, wave, place))
        self._fill(rollout)
        self._due_ms[id_] = now_ms
        many = f"{len(self.attempts[id_])} devices in {len(ends)} waves"
        yield Note("info", f"roll-out {id_}: release {release.number} ({release.version}) to {many}")

    def pause(self, id_: str, why: str = "paused by the operator") -> Iterator[Effect]:
        """Ask nobody more, until `resume`. Raises `ConfigError`."""
        yield from self._enter(self._known(id_, "running"), state="paused", why=why)

    def resume(self, id_: str) -> Iterator[Effect]:
        """Go on. Raises `ConfigError`."""
        self._to_judge.add(id_)
        yield from self._enter(self._known(id_, "paused"), state="running", why="")

    def stop(self, at: "Coordinator", id_: str, now_ms: int) -> Iterator[Effect]:
        """Ask nobody more, for good. Raises `ConfigError`."""
        yield from self._stop(at, self._known(id_, "running", "paused"), "stopped by the operator", now_ms)

    # --- as time passes ---

    def advance(self, at: "Coordinator", now_ms: int) -> Iterator[Effect]:
        """Take what became of commands, ask who is due, begin the next wave or stop."""
        moved = dict.fromkeys(at.commanding.take_moved())
        if self._fresh:
            self._fresh, moved = False, dict.fromkeys([*self._by_command, *moved])
        for cid in moved:
            if cid in self._by_command:
                self._to_judge.add(self._by_command[cid][0])
                yield from self._take(at, cid, now_ms)
        for rollout in list(self.rollouts.values()):
            if rollout.state == "running":
                yield from self._ask(at, rollout, now_ms)
                if rollout.id in self._to_judge:
                    self._to_judge.discard(rollout.id)
                    yield from self._judge(at, rollout, now_ms)

    def _take(self, at: "Coordinator", cid: str, now_ms: int) -> Iterator[Effect]:
        """What a command has come to."""
        name, device = self._by_command[cid]
        attempt, command = self.attempts[name][device], at.commanding.commands.get(cid)
        if command is None:  # kept no more
            yield self._save(replace(attempt, state="failed", why="its command is not known any more", ended_ms=now_ms))
        elif command.open:
            if command.status == "executing" and attempt.state == "asked":
                yield self._save(replace(attempt, state="executing"))
        else:
            why = " ".join(word for word in (command.code, command.why) if word)
            yield self._save(replace(attempt, state=_outcome(attempt, command), why=why, ended_ms=command.ended_ms))

    def _ask(self, at: "Coordinator", rollout: Rollout, now_ms: int) -> Iterator[Effect]:
        """Ask who waits, as the rate has it."""
        queue = self._queues[rollout.id]
        for _ in range(min(len(queue), BURST)):
            if now_ms < self._due_ms[rollout.id]:
                break
            attempt = self.attempts[rollout.id][queue.popleft()]
            device = at.fleet.devices.get(attempt.device)
            why = "it is not in the fleet any more" if device is None else unfit(device, rollout.release)
            info = device.info if device else None
            if why:
                yield self._save(replace(attempt, state="skipped", why=why, ended_ms=now_ms))
            elif info is not None and info.release == rollout.release.number:
                yield self._save(replace(attempt, state="successful", why="it has it already", ended_ms=now_ms))
            else:
                arguments = {"sha256": rollout.release.sha256, "size": str(rollout.release.size)}
                about = UPDATE, arguments, rollout.deadline_s, attempt.command, now_ms
                try:
                    yield from at.commanding.ask(at, attempt.device, *about)
                except ConfigError:  # another update by hand, or too many commands: later
                    queue.append(attempt.device)
                    continue
                yield self._save(replace(attempt, state="asked", asked_ms=now_ms))
                due_ms = self._due_ms[rollout.id] + _interval_ms(rollout)
                self._due_ms[rollout.id] = max(due_ms, now_ms + _interval_ms(rollout) - CATCH_UP_MS)
            self._to_judge.add(rollout.id)

    def _judge(self, at: "Coordinator", rollout: Rollout, now_ms: int) -> Iterator[Effect]:
        """Is the wave over, or too bad to go on with?"""
        wave = [a for a in self.attempts[rollout.id].values() if a.wave == rollout.wave]
        failed = [a for a in wave if a.state == "failed"]
        heard = sum(a.state != "skipped" for a in wave)
        if 100 * len(failed) > float(rollout.stop_at) * heard:
            share = f"wave {rollout.wave + 1}: {len(failed)} of {heard} devices failed"
            yield from self._stop(at, rollout, f"{share}: {_name(failed)}", now_ms)
        elif all(a.over for a in wave):
            last = rollout.wave + 1 >= rollout.waves
            if last:
                yield from self._enter(rollout, state="finished", ended_ms=now_ms)
            elif not any(a.state == "successful" for a in wave):
                nobody = f"wave {rollout.wave + 1}: nobody took it: {_name(wave)}"
                yield from self._stop(at, rollout, nobody, now_ms)
            else:
                yield from self._enter(rollout, wave=rollout.wave + 1)
                self._fill(self.rollouts[rollout.id])

    # --- inside ---

    def _stop(self, at: "Coordinator", rollout: Rollout, why: str, now_ms: int) -> Iterator[Effect]:
        """Who has not begun is not to; who has goes on, and its end is still written down."""
        for attempt in list(self.attempts[rollout.id].values()):
            if attempt.state == "asked":
                yield from at.commanding.withdraw(at, attempt.command, f"the roll-out {rollout.id} was stopped", now_ms)
            if attempt.state in ("asked", "waiting"):
                skipped = "withdrawn: the roll-out was stopped" if attempt.state == "asked" else "never asked"
                yield self._save(replace(attempt, state="skipped", why=skipped, ended_ms=now_ms))
        self._queues[rollout.id].clear()
        yield from self._enter(rollout, state="stopped", why=why[:1000], ended_ms=now_ms)

    def _enter(self, rollout: Rollout, **changes: object) -> Iterator[Effect]:
        after = replace(rollout, **changes)  # type: ignore[arg-type]  # its own fields
        self.rollouts[rollout.id] = after
        yield SaveRollout(after)
        level = "error" if after.state == "stopped" else "info"
        what = after.state if after.state != rollout.state else f"wave {after.wave + 1} of {after.waves}"
        yield Note(level, f"roll-out {after.id}: {what} {after.why}".rstrip())

    def _choose(
        self, at: "Coordinator", id_: str, release: KeptRelease, devices: Sequence[str] | None
    ) -> tuple[list[str], dict[str, int]]:
        """Whom it is for, in order, and how many not, by reason. A device that is named must fit."""
        left_out: dict[str, int] = {}
        if devices is not None:
            for name in devices:
                known = at.fleet.devices.get(name)
                if known is None:
                    raise ConfigError(f"there is no device {name}", "`broker-aggregator devices` lists them")
                if why := unfit(known, release):
                    raise ConfigError(f"release {release.number} is not for {name}: {why}", "leave the device out")
            chosen = list(dict.fromkeys(devices))
        else:
            fit = []
            for known in at.fleet.devices.values():
                if why := unfit(known, release):
                    left_out[why] = left_out.get(why, 0) + 1
                else:
                    fit.append(known)
            chosen = in_order(fit, id_)
        if not chosen:
            why = ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items())) or "the fleet is empty"
            raise ConfigError(f"release {release.number} is for no device: {why}", "`release list` says what it is for")
        return chosen, left_out

    def _known(self, id_: str, *states: str) -> Rollout:
        rollout = self.rollouts.get(id_)
        if rollout is None:
            raise ConfigError(f"there is no roll-out {id_}", "`rollout status` lists them")
        if rollout.state not in states:
            raise ConfigError(f"the roll-out {id_} is {rollout.state}", f"it would have to be {' or '.join(states)}")
        return rollout

    def _fill(self, rollout: Rollout) -> None:
        """Who waits in the wave under way, in order."""
        attempts = self.attempts[rollout.id].values()
        waiting = [a for a in attempts if a.wave == rollout.wave and a.state == "waiting" and rollout.open]
        self._queues[rollout.id] = deque(a.device for a in sorted(waiting, key=lambda a: a.place))

    def _save(self, attempt: Attempt) -> SaveAttempt:
        self.attempts[attempt.rollout][attempt.device] = attempt
        if attempt.state in ("asked", "executing"):
            self._by_command[attempt.command] = attempt.rollout, attempt.device
        elif attempt.state in OVER:
            self._by_command.pop(attempt.command, None)
        return SaveAttempt(attempt)

    def _forget_old(self) -> Iterator[Effect]:
        over = sorted((r for r in self.rollouts.values() if not r.open), key=lambda r: r.started_ms)
        for old in over[: max(0, len(over) - KEPT_ROLLOUTS + 1)]:
            for attempt in self.attempts.pop(old.id).values():
                self._by_command.pop(attempt.command, None)
            del self.rollouts[old.id], self._queues[old.id], self._due_ms[old.id]
            yield RemoveRollout(old.id)


def _interval_ms(rollout: Rollout) -> int:
    return 3_600_000 // rollout.per_hour if rollout.per_hour else 0


def _outcome(attempt: Attempt, command: CommandRecord) -> AttemptState:
    """What a command that is over says of the release: nothing, where the device never began."""
    if command.status == "successful":
        return "successful"
    unheard = command.code == Code.AUTH or (command.code == Code.DEADLINE and attempt.state == "asked")
    return "skipped" if unheard else "failed"


def _name(attempts: Sequence[Attempt]) -> str:
    """Some devices, and why."""
    said = "; ".join(f"{a.device}: {a.why or a.state}"[:160] for a in attempts[:NAMED])
    return said + (f"; and {len(attempts) - NAMED} more" if len(attempts) > NAMED else "")
