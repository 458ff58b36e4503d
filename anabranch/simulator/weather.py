"""What brokers, bridges and clusters do to messages: lose, double, reorder, delay, and alter them on their way."""

import json
import zlib
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import ProtocolError
from fl_protocol.memory_broker import Queue
from fl_protocol.messages import Chunk
from fl_protocol.topics import Kind, parse

if TYPE_CHECKING:
    from anabranch.simulator.faults import Fault
    from anabranch.simulator.trace import Trace
    from anabranch.simulator.world import World
    from fl_protocol.memory_broker import MemoryBroker

CHUNKS = (Kind.CHUNK_DOWN, Kind.BROADCAST)
SIGNED = (Kind.DESIRED, Kind.PLAN, Kind.MANIFEST, Kind.RESULT)


@dataclass(frozen=True)
class Weather:
    """`MemoryBroker.fate` while such faults last; each draws from a generator of its own."""

    world: "World"
    trace: "Trace"
    broker: "MemoryBroker"
    active: dict[int, tuple["Fault", Random]]

    def begin(self, fault: "Fault") -> None:
        """This fault begins."""
        self.active[fault.number] = fault, self.world.rng("weather", fault.number)
        self.broker.fate = self._fate

    def end(self, fault: "Fault") -> None:
        """It ends."""
        self.active.pop(fault.number, None)
        if not self.active:
            self.broker.fate = None

    def _fate(self, client_id: str, topic: str, payload: bytes, arrive: Queue) -> None:
        late, copies = 0.0, 1
        for fault, rng in self.active.values():
            if fault.who != client_id:
                continue
            match fault.deed:
                case "lose" if rng.random() < fault.amount:
                    self.trace.line("broker", f"loses {topic} for {client_id}")
                    return
                case "double" if rng.random() < fault.amount:
                    copies += 1
                case "reorder" if rng.random() < 0.5:
                    late += rng.expovariate(1 / fault.amount)
                case "late" if rng.random() < 0.3:
                    late += fault.amount
                case "tamper" if rng.random() < fault.amount:
                    payload = tampered(topic, payload, rng)
        if late or copies > 1:
            self.trace.line("broker", f"gives {topic} to {client_id} {copies} times, {late:.3f} s late")
        for copy in range(copies):
            if late or copy:
                self.world.after(late + copy * 0.01, lambda: arrive(payload))
            else:
                arrive(payload)


def tampered(topic: str, payload: bytes, rng: Random) -> bytes:
    """What somebody in between would make of a message: other numbers in it, and whatever needs no key mended.

    A chunk gets other data and the CRC of it, a signed message another version or verdict under the old signature, an
    update another body. Messages that nobody signs or hashes are left alone: whoever runs the broker can write those.
    """
    try:
        kind = parse(topic).kind
        if kind in CHUNKS:
            chunk = decode_as(Chunk, payload)
            data = _flipped(chunk.data, rng)
            plain = {"sha256": chunk.sha256, "index": chunk.index, "count": chunk.count}
            return encode(Chunk(data=data, crc32=zlib.crc32(data), **plain))  # type: ignore[arg-type]
        if kind in SIGNED and payload:
            said = json.loads(payload)
            lies = {"version": 10**6, "verdict": "accepted", "revision": 10**6, "tasks": ["task", "other"]}
            return json.dumps({**said, **{k: v for k, v in lies.items() if k in said}}).encode()
        if kind is Kind.UPDATE:
            return payload[:-80] + _flipped(payload[-80:], rng)
    except (ProtocolError, ValueError):
        pass
    return payload


def _flipped(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data)) if data else 0
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else data
