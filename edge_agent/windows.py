"""Messages in, examples out: no clock, no socket, no disk. `sensors.py` brings those.

    handle(topic, payload, now) -> a number for each channel -> rows -> windows -> with their label: examples

A row has one value of every channel. By count it is whole when every channel has said something since the last row; by
time each slot is one, of the means. A silence longer than `max_gap_s` drops the window in hand. `now` is of a clock
that only grows; `wall_s` since 1970, 0 without a clock.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.payloads import Reason, RefusedError, label_of, number_of, time_of, value_at
from edge_agent.sensing import ChannelConfig, LabelConfig, SensorsConfig, WindowConfig

NEVER = float("inf")


@dataclass(frozen=True)
class Example:
    """Features of the ring's shape, a label, and when the window ended."""

    x: NDArray[np.float32]
    y: float
    time_s: float


@dataclass(frozen=True)
class _Waiting:
    x: NDArray[np.float32]
    time_s: float
    ended: float  # on the clock that only grows


class Windows:
    """What becomes of a fleet of topics. `counts` says why messages and windows were not used."""

    def __init__(self, config: SensorsConfig) -> None:
        self._config, self._label = config, config.label
        self._by_topic: dict[str, list[tuple[int, ChannelConfig]]] = {}
        for number, channel in enumerate(config.channels):
            self._by_topic.setdefault(channel.topic, []).append((number, channel))
        self.counts: Counter[Reason] = Counter()
        self._rows: _Slots | _Joined = (
            _Slots(config.window, len(config.channels), self.counts)
            if config.window.seconds
            else _Joined(config.window, len(config.channels), self.counts)
        )
        self._gathered: deque[NDArray[np.float32]] = deque(maxlen=config.window.rows)
        self._until_next = config.window.rows  # rows until a window is whole
        self._in_force: float | None = None
        self._waiting: deque[_Waiting] = deque()
        self.messages = self.windows = self.examples = 0
        self.newest: NDArray[np.float32] | None = None  # the last window, with or without a label

    @property
    def topics(self) -> tuple[str, ...]:
        """What to subscribe to."""
        return tuple(dict.fromkeys([*self._by_topic, *([self._label.topic] if self._label else [])]))

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do, if no message comes before."""
        waits = self._waiting[0].ended + self._horizon_s if self._waiting else NEVER
        return min(waits, self._rows.wake_at)

    def handle(
        self, topic: str, payload: bytes, now: float, *, wall_s: float = 0.0, retained: bool = False
    ) -> list[Example]:
        """One message; the examples that it completes. No payload raises anything."""
        examples = self.tick(now, wall_s=wall_s)
        self.messages += 1
        if self._label and topic == self._label.topic:
            examples += self._labelled(self._label, payload, retained)
        values = {}
        for number, channel in self._by_topic.get(topic, ()):
            try:
                values[number] = self._value(channel, payload, wall_s, retained)
            except RefusedError as refused:
                self.counts[refused.reason] += 1
        if values:
            examples += self._take(self._rows.add(values, now), wall_s, now)
        return examples

    def tick(self, now: float, *, wall_s: float = 0.0) -> list[Example]:
        """Time passes: slots end, and windows that waited for their label wait no longer."""
        examples = self._take(self._rows.pass_to(now), wall_s, now)
        while self._waiting and self._waiting[0].ended + self._horizon_s <= now:
            examples += self._defaulted(self._waiting.popleft())
        return examples

    def interrupted(self) -> None:
        """There was no connection for a while: what is in hand has a hole, and what is in force may have changed."""
        self._rows.clear()
        self._drop()
        self._in_force = None

    def forget(self) -> None:
        """Nothing of what was heard stays; the counts do."""
        self.interrupted()
        self._gathered.clear()
        self._until_next = self._config.window.rows
        self._waiting.clear()
        self.newest = None

    # --- inside ---

    @property
    def _horizon_s(self) -> float:
        return self._label.horizon_s if self._label else 0.0

    def _value(self, channel: ChannelConfig, payload: bytes, wall_s: float, retained: bool) -> float:
        if retained:
            raise RefusedError(Reason.RETAINED)
        value = value_at(payload, channel.field)
        if channel.time_field and wall_s:
            age_s = wall_s - time_of(value_at(payload, channel.time_field))
            if not age_s <= self._config.max_age_s:  # not a number is no time either
                raise RefusedError(Reason.TOO_OLD)
        return number_of(value, channel.min, channel.max)

    def _labelled(self, label: LabelConfig, payload: bytes, retained: bool) -> list[Example]:
        """A word on the label's topic: it is in force from now on, or it is the event that windows wait for."""
        try:
            if retained and label.horizon_s:
                raise RefusedError(Reason.RETAINED)
            y = label_of(value_at(payload, label.field), label.classes)
        except RefusedError as refused:
            self.counts[refused.reason] += 1
            return []
        if not label.horizon_s:
            self._in_force = y
            return []
        examples = [self._example(each, y) for each in self._waiting]
        self._waiting.clear()
        return examples

    def _take(self, rows: "Iterator[NDArray[np.float32] | None]", wall_s: float, now: float) -> list[Example]:
        """Rows in order, None for a gap; the examples whose windows they complete."""
        examples = []
        for row in rows:
            if row is None:
                self._drop()
                continue
            self._gathered.append(row)
            self._until_next -= 1
            if not self._until_next:
                self._until_next = self._config.window.step_rows
                examples += self._ended(wall_s, now)
        return examples

    def _ended(self, wall_s: float, now: float) -> list[Example]:
        """A window is whole: with its label it is an example, without one it waits, or not."""
        axis = 1 if self._config.window.order == "channel-time" else 0
        window = _Waiting(np.stack(self._gathered, axis=axis), wall_s, now)
        self.newest, self.windows = window.x, self.windows + 1
        if self._label is None:
            return [self._example(window, 0.0)]
        if self._in_force is not None:
            return [self._example(window, self._in_force)]
        if not self._label.horizon_s:
            return self._defaulted(window)
        self._waiting.append(window)
        if len(self._waiting) > self._label.max_waiting:
            self._waiting.popleft()
            self.counts[Reason.WAITING] += 1
        return []

    def _defaulted(self, window: _Waiting) -> list[Example]:
        if self._label is None or self._label.default is None:
            self.counts[Reason.UNLABELED] += 1
            return []
        return [self._example(window, self._label.default)]

    def _example(self, window: _Waiting, y: float) -> Example:
        self.examples += 1
        return Example(window.x, y, window.time_s)

    def _drop(self) -> None:
        if self._until_next < self._config.window.rows:
            self.counts[Reason.GAP] += 1
        self._gathered.clear()
        self._until_next = self._config.window.rows


class _Joined:
    """A row each time that every channel has said something; the newest of each counts."""

    wake_at = NEVER

    def __init__(self, window: WindowConfig, channels: int, counts: Counter[Reason]) -> None:
        self._max_gap_s, self._channels, self._counts = window.max_gap_s, channels, counts
        self._values: dict[int, tuple[float, float]] = {}  # channel -> value, when
        self._last_at = NEVER

    def add(self, values: dict[int, float], now: float) -> Iterator[NDArray[np.float32] | None]:
        if now - self._last_at > self._max_gap_s:
            self._last_at = NEVER
            yield None
        for number in [number for number, (_, at) in self._values.items() if now - at > self._max_gap_s]:
            del self._values[number]
            self._counts[Reason.LATE] += 1
        if replaced := self._values.keys() & values.keys():
            self._counts[Reason.REPLACED] += len(replaced)
        self._values |= {number: (value, now) for number, value in values.items()}
        if len(self._values) == self._channels:
            row = np.array([self._values[number][0] for number in range(self._channels)], np.float32)
            self._values.clear()
            self._last_at = now
            yield row

    def pass_to(self, now: float) -> Iterator[NDArray[np.float32] | None]:  # noqa: ARG002 - rows come with messages
        return iter(())

    def clear(self) -> None:
        self._values.clear()
        self._last_at = NEVER


class _Slots:
    """A row for each slot of time: the mean of what a channel said in it, or its last value, if that is no gap."""

    def __init__(self, window: WindowConfig, channels: int, counts: Counter[Reason]) -> None:
        self._slot_s, self._max_gap_s, self._channels, self._counts = window.slot_s, window.max_gap_s, channels, counts
        self._start = NEVER  # of the slot in hand; NEVER: nothing was heard yet
        self._sums: dict[int, tuple[float, int]] = {}
        self._last: dict[int, tuple[float, float]] = {}  # channel -> value, when

    @property
    def wake_at(self) -> float:
        return self._start + self._slot_s

    def add(self, values: dict[int, float], now: float) -> Iterator[NDArray[np.float32] | None]:
        if self._start == NEVER:
            self._start = now
        for number, value in values.items():
            total, count = self._sums.get(number, (0.0, 0))
            self._sums[number] = total + value, count + 1
            self._last[number] = value, now
        return iter(())

    def pass_to(self, now: float) -> Iterator[NDArray[np.float32] | None]:
        while self._start + self._slot_s <= now:
            end = self._start + self._slot_s
            row = self._row(end)
            self._sums.clear()
            self._start = end
            if row is None:
                self._counts[Reason.SILENT] += 1
            yield row
            if row is None and all(end - at > self._max_gap_s for _, at in self._last.values()):
                self.clear()  # all are silent: the next word begins anew, however many slots would be empty
                return

    def _row(self, end: float) -> NDArray[np.float32] | None:
        row = np.empty(self._channels, np.float32)
        for number in range(self._channels):
            if number in self._sums:
                total, count = self._sums[number]
                row[number] = total / count
            elif number in self._last and end - self._last[number][1] <= self._max_gap_s:
                row[number] = self._last[number][0]
            else:
                return None
        return row

    def clear(self) -> None:
        self._start = NEVER
        self._sums.clear()
        self._last.clear()


def used(windows: Windows) -> dict[str, Any]:
    """What was heard and what came of it, for people and programs."""
    return {
        "messages": windows.messages,
        "windows": windows.windows,
        "examples": windows.examples,
        "not used": {str(reason): count for reason, count in windows.counts.most_common() if count},
    }
