"""The thread that listens to the local broker and fills the ring: `windows.py` decides, this brings socket and clock.

It is a thread of its own because the agent's loop belongs to the fleet's broker, and stands still while it reads
examples or loads a graph; sensors do not wait. Subscriptions are at QoS 0 on purpose: at QoS 1 a broker hands over,
after a pause, what it kept, and values of different times would make one window. What is lost instead is a gap.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edge_agent.logs import LEAVES
from edge_agent.ring import Ring
from edge_agent.ring_files import CLOCK_SET_S, Held
from edge_agent.windows import Example, Windows, used
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Undeliverable

log = logging.getLogger("edge_agent")

COUNTS = "counts.json"  # beside the segments, for `edge-agent data show`
COUNTS_S = 3600.0  # how often that file is written, for the flash's sake
WAIT_S = 0.5
STOP_S = 5.0


class Listening(Protocol):
    """What is used of a `Transport`: nothing here can publish."""

    @property
    def dropped(self) -> int:
        """Messages that were lost for want of room."""

    def start(self) -> None:
        """Begin connecting."""

    def receive(self, timeout: float) -> list[Incoming]:
        """What happened since the last call."""

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs."""

    def acknowledge(self, receipt: object) -> None:
        """For a broker that sends at QoS 1 all the same."""

    def close(self) -> None:
        """Disconnect."""


class Sensors:
    """Sensors of one device. `failed` is called, on the thread, when it ends for another reason than `close`."""

    def __init__(
        self,
        windows: Windows,
        ring: Ring,
        transport: Listening,
        *,
        broker: str = "the sensors' broker",
        failed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._windows, self._ring, self._transport = windows, ring, transport
        self._broker, self._failed, self._clock, self._wall = broker, failed, clock, wall
        self._lock = threading.Lock()  # windows and ring change together
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._counts_at = clock() + COUNTS_S
        self._connected = False
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def step(self, patience_s: float = WAIT_S) -> None:
        """Wait at most `patience_s` for something to happen, and see to it. Raises `ConfigError` as the ring does."""
        due_s = min(self._windows.wake_at, self._ring.wake_at, self._counts_at) - self._clock()
        come = self._transport.receive(max(0.0, min(patience_s, due_s)))
        with self._lock:
            for event in come:
                self._take(event)
            self._keep(self._windows.tick(self._clock(), wall_s=self._wall_s()))
            self._ring.tick()
            if self._clock() >= self._counts_at:
                self._counts_at = self._clock() + COUNTS_S
                self._save_counts()

    def counts(self) -> dict[str, object]:
        """What was heard since the start, and what came of it; no value of any sensor."""
        lost = {"lost for want of room": self._transport.dropped, "dropped: the disk was full": self._ring.dropped}
        return {**used(self._windows), **{name: count for name, count in lost.items() if count}}

    def forget(self) -> Held:
        """Erase the ring and what is in hand; from any thread. Raises `ConfigError` as the ring does."""
        with self._lock:
            self._windows.forget()
            return self._ring.forget()

    def close(self) -> None:
        """Stop listening, and put what waits on the disk. Raises what ended the thread, if anything did."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._transport.close()
        if self._error is not None:
            raise self._error
        with self._lock:
            self._ring.close()
            self._save_counts()

    # --- inside ---

    def _run(self) -> None:
        try:
            self._transport.start()
            while not self._stop.is_set():
                self.step()
        except Exception as error:  # the main thread's to judge: it ends the process
            self._error = error
            self._failed()

    def _take(self, event: Incoming) -> None:
        match event:
            case Delivery(topic, payload, retained, receipt):
                now, wall_s = self._clock(), self._wall_s()
                self._keep(self._windows.handle(topic, payload, now, wall_s=wall_s, retained=retained))
                if receipt is not None:
                    self._transport.acknowledge(receipt)
            case Connected(limits=limits):
                self._connected = True
                self._transport.subscribe([(topic, 0) for topic in self._windows.topics])
                log.info("connected to %s, MQTT %s", self._broker, limits.version, extra=LEAVES)
            case Disconnected(reason, retry_in_s):
                what, self._connected = ("lost" if self._connected else "cannot reach"), False
                self._windows.interrupted()
                text = f"{what} {self._broker} ({reason}); trying again in {retry_in_s:.0f} s"
                log.warning("%s", text, extra=LEAVES)
            case Undeliverable(topic, _, reason):
                log.error("sensors: %s cannot be subscribed to: %s", topic, reason)

    def _keep(self, examples: Sequence[Example]) -> None:
        newest = self._windows.newest
        if newest is not None:
            self._ring.see(newest)
        for example in examples:
            self._ring.append(example.x, example.y, example.time_s)

    def _wall_s(self) -> float:
        """Seconds since 1970, 0 while the machine has no clock."""
        now = self._wall()
        return now if now > CLOCK_SET_S else 0.0

    def _save_counts(self) -> None:
        counts = self.counts()
        log.info("sensors: %s", json.dumps(counts))
        try:
            write_durably(self._ring.directory / COUNTS, json.dumps(counts).encode(), 0o600)
        except OSError as error:
            log.warning("sensors: cannot write %s: %s", COUNTS, error.strerror)


def read_counts(directory: Path) -> dict[str, object]:
    """What the last agent counted; empty where there is nothing. Raises `ConfigError` for a file that is none."""
    try:
        found = json.loads((directory / COUNTS).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {directory / COUNTS}: {error}", "remove it: it is written again") from None
    return dict(found)
