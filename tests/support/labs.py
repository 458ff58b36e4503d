"""Where the transport contract is tested: one broker and any number of transports to it, in memory or for real."""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from fl_protocol.memory import MemoryTransport
from fl_protocol.memory_broker import MemoryBroker
from fl_protocol.mqtt import MqttTransport
from fl_protocol.reconnect import Version
from fl_protocol.transport import Transport, WillOf
from fl_protocol.wire import Arrive
from tests.support.forwarder import Forwarder
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until

# When the broker writes its disk: at every change, when `Lab.save` tells it to, or never: it has none.
Saves = Literal["always", "when told", "never"]


class Lab(Protocol):
    """A broker whose connections can be cut and stalled, that can be killed, stopped, wiped and restarted."""

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> Transport:
        """A transport to this broker, not started."""

    def cut(self, client_id: str) -> None:
        """End the connection of a transport made here, as a dead network does."""

    def stall(self, client_id: str) -> None:
        """Let nothing through to and from a transport made here, without a word to either end."""

    def flow(self, client_id: str) -> None:
        """Let it through again, and what was held back."""

    def away(self, client_id: str) -> None:
        """Wait until the broker knows that this transport is gone."""

    def kill(self) -> None:
        """`kill -9` the broker."""

    def stop(self) -> None:
        """End the broker in good order."""

    def restart(self) -> None:
        """Start it again, with what its disk holds."""

    def wipe(self) -> None:
        """Lose the disk of a killed broker."""

    def save(self) -> None:
        """Let the broker write its disk now."""

    def saved(self, content: bytes) -> None:
        """Wait until the broker's disk, which it writes at every change, holds these bytes."""

    def close(self) -> None:
        """End everything."""


# Makes a lab, with limits of the broker: max_packet, max_queued, max_in_flight, saves.
LabWith = Callable[..., Lab]


class TestWire:
    """A `Wire` that a test stalls: then nothing arrives at either end, and it takes `room` bytes on the way down."""

    __test__ = False  # pytest: this is no test

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.stalled = False
        self._up: deque[Arrive] = deque()
        self.on_the_way_down: deque[tuple[int, Arrive]] = deque()
        self._drained: Arrive = lambda: None

    def up(self, _size: int, arrive: Arrive, /) -> None:
        self._up.append(arrive)
        self._pass()

    def down(self, size: int, arrive: Arrive, /) -> None:
        self.on_the_way_down.append((size, arrive))
        self._pass()

    def full(self) -> bool:
        return sum(size for size, _ in self.on_the_way_down) >= self.room

    def on_drained(self, drained: Arrive, /) -> None:
        self._drained = drained

    def flow(self) -> None:
        """Let everything through that was held back, each way in its order."""
        self.stalled = False
        self._pass()

    def step_down(self) -> None:
        """Let the oldest packet on the way down arrive, stalled or not."""
        full = self.full()
        _, arrive = self.on_the_way_down.popleft()
        arrive()
        if full and not self.full():
            self._drained()

    def step_up(self) -> None:
        """Let the oldest packet on the way up arrive, stalled or not."""
        self._up.popleft()()

    def _pass(self) -> None:
        while not self.stalled and (self._up or self.on_the_way_down):
            if self._up:
                self.step_up()
            else:
                self.step_down()


class MemoryLab:
    """The memory broker; its disk is as good as its memory, unless it `saves` otherwise."""

    def __init__(
        self,
        *,
        max_packet: int | None = None,
        max_queued: int = 1000,
        max_in_flight: int = 20,
        saves: Saves = "always",
    ) -> None:
        packet = {} if max_packet is None else {"max_packet": max_packet}
        self.broker = MemoryBroker(max_queued=max_queued, receive_maximum=max_in_flight, **packet)
        self.kill, self.wipe = self.broker.kill, self.broker.wipe
        self.cut, self.save = self.broker.cut, self.broker.save
        self.saves = saves
        self._wires: dict[str, TestWire] = {}

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> MemoryTransport:
        self._wires[client_id] = wire = TestWire()
        return MemoryTransport(self.broker, client_id, will=will, receive_maximum=receive_maximum, wire=wire)

    def stall(self, client_id: str) -> None:
        self._wires[client_id].stalled = True

    def flow(self, client_id: str) -> None:
        self._wires[client_id].flow()

    def away(self, client_id: str) -> None:
        pass

    def stop(self) -> None:
        self.broker.stop()

    def restart(self) -> None:
        if self.saves == "never":
            self.broker.wipe()
        self.broker.restart(saved=self.saves == "when told")

    def saved(self, content: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class MosquittoLab:
    """mosquitto, with a wire of its own for each transport. MQTT 3.1.1 brokers cannot say their packet limit: we do."""

    def __init__(
        self,
        directory: Path,
        version: Version,
        *,
        max_packet: int | None = None,
        max_queued: int = 1000,
        max_in_flight: int = 20,
        saves: Saves = "always",
        keepalive_s: int = 30,
    ) -> None:
        settings = [f"max_queued_messages {max_queued}", f"max_inflight_messages {max_in_flight}"]
        if max_packet is not None:
            settings.append(f"max_packet_size {max_packet}")
        self.broker = Mosquitto(
            directory, "\n".join(settings), persistence=saves != "never", autosave=saves == "always"
        )
        self.kill, self.stop, self.restart = self.broker.kill, self.broker.stop, self.broker.restart
        self.wipe, self.save = self.broker.wipe, self.broker.save
        self._options: dict[str, Any] = {"version": version, "keepalive_s": keepalive_s}
        self._options |= {"reconnect_min_s": 0.05, "reconnect_max_s": 0.2}
        if version == "3.1.1":
            self._options["max_packet"] = max_packet
        self._wires: dict[str, Forwarder] = {}
        self._transports: list[Transport] = []

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> MqttTransport:
        wire = self._wires.get(client_id) or Forwarder(self.broker.port)
        self._wires[client_id] = wire
        transport = MqttTransport(
            "127.0.0.1", wire.port, client_id, will=will, receive_maximum=receive_maximum, **self._options
        )
        self._transports.append(transport)
        return transport

    def cut(self, client_id: str) -> None:
        self._wires[client_id].cut()

    def stall(self, client_id: str) -> None:
        self._wires[client_id].stall()

    def flow(self, client_id: str) -> None:
        self._wires[client_id].flow()

    def away(self, client_id: str) -> None:
        wait_until(lambda: self.broker.has_lost(client_id), what=f"the broker knows that {client_id} is gone")

    def saved(self, content: bytes) -> None:
        wait_until(lambda: self.broker.holds(content), what=f"{content!r} on the broker's disk")

    def close(self) -> None:
        self.broker.kill()  # first: so that no transport waits for an answer
        for transport in self._transports:
            transport.close()
        for wire in self._wires.values():
            wire.close()


# How each kind is made, in a directory of its own.
LABS: dict[str, Callable[[Path], LabWith]] = {
    "memory": lambda _: MemoryLab,
    "mosquitto-5": lambda directory: partial(MosquittoLab, directory / "broker", "5"),
    "mosquitto-3.1.1": lambda directory: partial(MosquittoLab, directory / "broker", "3.1.1"),
}
