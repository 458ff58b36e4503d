"""What the device says of itself: state, info, health, and what a person should know about."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from edge_agent.budget import Limit
from edge_agent.events import Effect, Guess, Measured, Note, Send
from edge_agent.gate import Answer
from edge_agent.identity import Identity
from fl_protocol.errors import Code
from fl_protocol.messages import DeviceEvent, DeviceInfo, DeviceState, Health, Message, Prediction, StateName
from fl_protocol.topics import Kind
from fl_protocol.transport import Connected

Level = Literal["info", "warning", "error"]
SAME_AGAIN_S = 60.0  # the same complaint is not said again before
KEPT_COMPLAINTS = 64
AT_WORK = frozenset({"training", "uploading", "ready"})


class Telling:
    """Knows what was told last, so that nothing is said twice; `emit` takes the effects.

    A device at work turns from training to uploading to ready several times an update. Of that it says one word in
    `state_s` seconds at most: for small models such words would take more bytes than what is learnt.
    """

    def __init__(
        self, identity: Identity, info: DeviceInfo, emit: Callable[[Effect], None], state_s: float = 0.0
    ) -> None:
        self._state_s, self._state_at = state_s, float("-inf")
        self.wake_at = float("inf")  # when a state that waits to be said is due
        self._identity, self._info, self._emit = identity, info, emit
        self._bseq = self._n = 0
        self._connected = False
        self._state: tuple[StateName, str | None, int | None, str] | None = None
        self._complaints: dict[tuple[str, str], float] = {}

    def connected(self, event: Connected) -> None:
        """A new connection: everything is told anew."""
        self._connected, self._bseq = True, event.bseq
        self._info = replace(self._info, mqtt=event.limits.version)
        self.announce()

    def disconnected(self) -> None:
        """Nobody hears; what is worth keeping is told at the next connection."""
        self._connected = False

    def say_state_again(self) -> None:
        """The last one may not have arrived."""
        self._state = None

    def announce(self) -> None:
        """Say who this is, and have the state said again."""
        self.say_state_again()
        self._publish(Kind.INFO, self._info, retain=True)

    def num_examples(self, count: int) -> None:
        """How many examples the device trains on."""
        if count != self._info.num_examples:
            self._info = replace(self._info, num_examples=count)
            self._publish(Kind.INFO, self._info, retain=True)

    def state(
        self, now: float, name: StateName, task: str | None = None, version: int | None = None, why: str = ""
    ) -> None:
        """The device's state; published when it changed, or when the last one may not have arrived."""
        state = name, task, version, why[:400]
        self.wake_at = float("inf")
        if self._connected and state != self._state:
            due = self._state_at + self._state_s
            if now < due and name in AT_WORK and self._state and self._state[0] in AT_WORK:
                self.wake_at = due
                return
            self._state, self._n, self._state_at = state, self._n + 1, now
            message = DeviceState(
                state=name,
                boot=self._identity.boot,
                bseq=self._bseq,
                n=self._n,
                task=task,
                version=version,
                why=state[3],
                incarnation=self._identity.incarnation,
            )
            self._publish(Kind.STATE, message, retain=True)

    def heard_own_state(self, state: DeviceState) -> None:
        """A last will that speaks of this life or an earlier one is contradicted."""
        if state.state == "lost" and (state.boot, state.bseq) <= (self._identity.boot, self._bseq):
            self._state = None

    def slow_down(self, state_s: float) -> None:
        """How often a device at work says what it is at, from now on."""
        self._state_s = state_s

    def health(self, measured: Measured, gate: Answer, budget: Limit | None = None) -> None:
        """What the sensors say, and what of today's `budget` is spent."""
        self._publish(Kind.HEALTH, self.vitals(measured, gate, budget), qos=0)

    def vitals(self, measured: Measured, gate: Answer, budget: Limit | None = None) -> Health:
        """The same, for whoever asks."""
        return Health(
            memory_mb=round(measured.vitals.memory_mb, 1),
            peak_memory_mb=round(measured.vitals.peak_memory_mb, 1),
            cpu_s=round(measured.vitals.cpu_s, 2),
            temperature_c=measured.reading.temperature_c,
            battery_pct=measured.reading.battery_pct,
            disk_free_mb=measured.reading.disk_free_mb and round(measured.reading.disk_free_mb, 1),
            may_train=gate.may,
            why_not=gate.because,
            bytes_up=measured.bytes_up,
            bytes_down=measured.bytes_down,
            provider=measured.vitals.provider,
            bytes_today=budget and budget.used,
            bytes_allowed=budget and budget.most,
        )

    def prediction(self, task: str, version: int, guess: Guess) -> None:
        """What the int8 model said."""
        message = Prediction(
            task=task,
            version=version,
            label=guess.label,
            probability=round(guess.probability, 4),
            milliseconds=round(guess.milliseconds, 3),
        )
        self._publish(Kind.PREDICTION, message, qos=0)

    def complain(self, event: str, code: Code | None, message: str, now: float, level: Level = "error") -> None:
        """Something went wrong: in the log, and as an event, but the same not again and again."""
        key = event, message
        if now - self._complaints.get(key, float("-inf")) < SAME_AGAIN_S:
            return
        if len(self._complaints) >= KEPT_COMPLAINTS:
            self._complaints.clear()
        self._complaints[key] = now
        text = f"{code}: {message}" if code else message
        self._emit(Note(level, f"{event}: {text}"))
        self._emit(
            Send(
                self._identity.topic(Kind.EVENT),
                DeviceEvent(event=event, level=level, code=code or "", message=message[:400]),
            )
        )

    def _publish(self, kind: Kind, message: Message, *, qos: int = 1, retain: bool = False) -> None:
        if self._connected:
            self._emit(Send(self._identity.topic(kind), message, qos, retain))
