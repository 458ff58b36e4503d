"""Where the transport contract is tested: one broker and any number of transports to it, in memory or for real."""

from pathlib import Path
from typing import Any, Protocol

from fl_protocol.memory import MemoryBroker, MemoryTransport
from fl_protocol.mqtt import MqttTransport
from fl_protocol.reconnect import Version
from fl_protocol.transport import Transport, WillOf
from tests.support.forwarder import Forwarder
from tests.support.mosquitto import Mosquitto
from tests.support.waiting import wait_until


class Lab(Protocol):
    """A broker whose connections can be cut, that can be killed, wiped and restarted."""

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> Transport:
        """A transport to this broker, not started."""

    def cut(self, client_id: str) -> None:
        """End the connection of a transport made here, as a dead network does."""

    def kill(self) -> None:
        """`kill -9` the broker."""

    def restart(self) -> None:
        """Start it again."""

    def wipe(self) -> None:
        """Lose the disk of a killed broker."""

    def saved(self, content: bytes) -> None:
        """Wait until the broker's disk holds these bytes."""

    def close(self) -> None:
        """End everything."""


class MemoryLab:
    """The memory broker; its disk is as good as its memory."""

    def __init__(self, *, max_packet: int | None = None, max_queued: int = 1000, max_in_flight: int = 20) -> None:
        packet = {} if max_packet is None else {"max_packet": max_packet}
        self.broker = MemoryBroker(max_queued=max_queued, receive_maximum=max_in_flight, **packet)
        self.kill, self.restart, self.wipe = self.broker.kill, self.broker.restart, self.broker.wipe
        self.cut = self.broker.cut

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> Transport:
        return MemoryTransport(self.broker, client_id, will=will, receive_maximum=receive_maximum)

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
    ) -> None:
        settings = [f"max_queued_messages {max_queued}", f"max_inflight_messages {max_in_flight}"]
        if max_packet is not None:
            settings.append(f"max_packet_size {max_packet}")
        self.broker = Mosquitto(directory, "\n".join(settings))
        self.kill, self.restart, self.wipe = self.broker.kill, self.broker.restart, self.broker.wipe
        self._options: dict[str, Any] = {"version": version, "reconnect_min_s": 0.05, "reconnect_max_s": 0.2}
        if version == "3.1.1":
            self._options["max_packet"] = max_packet
        self._wires: dict[str, Forwarder] = {}
        self._transports: list[Transport] = []

    def transport(self, client_id: str, *, will: WillOf | None = None, receive_maximum: int = 64) -> Transport:
        wire = self._wires.get(client_id) or Forwarder(self.broker.port)
        self._wires[client_id] = wire
        transport = MqttTransport(
            "127.0.0.1", wire.port, client_id, will=will, receive_maximum=receive_maximum, **self._options
        )
        self._transports.append(transport)
        return transport

    def cut(self, client_id: str) -> None:
        self._wires[client_id].cut()

    def saved(self, content: bytes) -> None:
        wait_until(lambda: self.broker.holds(content), what=f"{content!r} on the broker's disk")

    def close(self) -> None:
        self.broker.kill()  # first: so that no transport waits for an answer
        for transport in self._transports:
            transport.close()
        for wire in self._wires.values():
            wire.close()
