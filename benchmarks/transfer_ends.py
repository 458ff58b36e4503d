"""One end of a transfer as a process of its own, for `benchmarks/transfer.py`: the protocol's machines on a socket.

It writes what it knows into a status file, over and over, so that whoever kills it knows where it was.
"""

# ruff: noqa: ARG002 - the ends share one shape

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import ProtocolError
from fl_protocol.file_source import FileSource
from fl_protocol.messages import Chunk, GatewayState, Get, Grant, Message, Offer
from fl_protocol.mqtt import MqttTransport
from fl_protocol.parts import FileParts
from fl_protocol.topics import Kind, build
from fl_protocol.transfer import Fetch, Inbox, Outgoing, Upload, chunk_size_for
from fl_protocol.transport import Connected, Delivery, Disconnected, Limits

FLEET, DEVICE = "bench", "ann"
STATUS_S = 0.05
BIG = 1_000_000  # bytes of a packet of the reference


class Mischief:
    """A network that reorders and doubles: each chunk may be held back behind up to two others, or come twice."""

    def __init__(self, seed: int | None) -> None:
        self._rng, self._held = random.Random(seed), list[tuple[int, Chunk]]()
        self._chance = 0.0 if seed is None else 0.1

    def let_through(self, chunk: Chunk) -> Iterator[Chunk]:
        """What comes instead of this chunk, now."""
        self._held = [(behind - 1, held) for behind, held in self._held]
        if self._rng.random() < self._chance:
            self._held.append((self._rng.randint(1, 2), chunk))
        else:
            yield chunk
        if self._rng.random() < self._chance / 2:
            yield chunk
        yield from (held for behind, held in self._held if behind <= 0)
        self._held = [(behind, held) for behind, held in self._held if behind > 0]


class End:
    """What all four ends have: a transport, the object's name, a folder, and a status."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path = options.folder
        self.sha256, self.size = options.sha256, options.size
        self.mischief = Mischief(options.seed)
        self.done, self.progress, self.waited_s, self.disconnects, self.came = False, 0.0, 0.0, 0, 0
        gateway = options.role.endswith("gateway")
        self.transport = MqttTransport(
            options.host,
            options.port,
            "gateway" if gateway else DEVICE,
            reconnect_min_s=0.2,
            reconnect_max_s=1.0,
            receive_maximum=20,
            max_incoming=4 << 20,
        )
        self.limits: Limits | None = None
        self._status_at = 0.0
        self._file: Path = options.status

    def topic(self, kind: Kind) -> str:
        """One of the only device's topics, or the gateway's."""
        return build(kind, FLEET, device=DEVICE)

    def publish(self, kind: Kind, message: Message, qos: int = 1, *, retain: bool = False) -> None:
        """One message."""
        self.transport.publish(self.topic(kind), encode(message), qos=qos, retain=retain)

    def run(self, stopping: threading.Event) -> None:
        """Until the object is across, or the parent ends this."""
        self.transport.start()
        while not stopping.is_set():
            for event in self.transport.receive(0.02):
                match event:
                    case Connected(limits=limits):
                        self.limits = limits
                        self.connected(limits)
                    case Disconnected(retry_in_s=wait_s):
                        self.disconnects += 1
                        self.waited_s += wait_s
                    case Delivery(topic=topic, payload=payload, receipt=receipt):
                        self.heard(topic.rsplit("/", 1)[1], payload)
                        if receipt is not None:
                            self.transport.acknowledge(receipt)
            if self.limits is not None:
                self.turn(time.monotonic())
            self.tell()
        self.tell(now=True)
        self.transport.close()

    def tell(self, *, now: bool = False) -> None:
        """Write the status file."""
        if not now and time.monotonic() < self._status_at:
            return
        self._status_at = time.monotonic() + STATUS_S
        status: dict[str, Any] = {
            "connected": self.limits is not None,
            "done": self.done,
            "progress": self.progress,
            "bytes_sent": self.transport.bytes_sent,
            "waited_s": self.waited_s,
            "disconnects": self.disconnects,
            "cpu_s": time.process_time(),
            "chunks": self.came,
        }
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(status))
        temporary.replace(self._file)

    def connected(self, limits: Limits) -> None:
        """A connection has begun."""

    def heard(self, last: str, payload: bytes) -> None:
        """A message on a topic with this last level."""

    def turn(self, now: float) -> None:
        """What is due."""

    def finish(self, parts: FileParts, name: str) -> None:
        """The object is whole and right: give it its name."""
        self.done = parts.finish(name, self.folder / self.sha256)


class UpDevice(End):
    """Offers a file, and sends what is granted."""

    upload: Upload | None = None

    def connected(self, limits: Limits) -> None:
        self.transport.subscribe([(self.topic(Kind.GRANT), 1)])
        if self.upload is None:
            source = FileSource(self.folder / "object", self.sha256)
            size = chunk_size_for(limits.version, limits.max_packet)
            self.upload = Upload(
                source, size, task="bench", incarnation="0" * 16, seq=1, base_version=0, fingerprint="0" * 32
            )
        self.upload.resume()

    def heard(self, last: str, payload: bytes) -> None:
        assert self.upload is not None
        for chunk in self.upload.granted(decode_as(Grant, payload), time.monotonic()):
            self.publish(Kind.CHUNK_UP, chunk)
        self.done = self.upload.answer == "done"

    def turn(self, now: float) -> None:
        if self.upload is not None and not self.done and (offer := self.upload.offer(now)):
            self.publish(Kind.OFFER, offer)


class UpGateway(End):
    """Takes it in, on its disk."""

    inbox: Inbox | None = None

    def connected(self, limits: Limits) -> None:
        self.transport.subscribe([(self.topic(Kind.OFFER), 1), (self.topic(Kind.CHUNK_UP), 1)])
        if self.inbox is None:
            self.parts = FileParts(self.folder)
            self.inbox = Inbox(1 << 30, 3600.0, parts=self.parts, now=time.monotonic())

    def heard(self, last: str, payload: bytes) -> None:
        assert self.inbox is not None
        now = time.monotonic()
        if last == "offer":
            offer = decode_as(Offer, payload)
            if self.done:
                self.publish(Kind.GRANT, Grant(sha256=self.sha256, answer="done"))
            else:
                reception = self.inbox.open(offer.sha256, offer.size, offer.chunk_size, DEVICE, now)
                self.publish(Kind.GRANT, reception.offered(now))
            return
        for chunk in self.mischief.let_through(decode_as(Chunk, payload)):
            found = self.inbox.get(DEVICE, chunk.sha256)
            if found is None or self.done:
                continue
            self.came += 1
            if found.add(chunk, now):
                found.verify()
                self.finish(self.parts, f"{DEVICE}.{self.sha256}")
                self.publish(Kind.GRANT, Grant(sha256=self.sha256, answer="done"))
            elif grant := found.next_grant(now):
                self.publish(Kind.GRANT, grant)
            self.progress = found.progress

    def turn(self, now: float) -> None:
        if self.inbox is not None and not self.done:
            for _, grant in self.inbox.next_grants(now):
                self.publish(Kind.GRANT, grant)


class DownDevice(End):
    """Fetches it, to its disk."""

    fetch: Fetch | None = None
    gateway: tuple[int, int] | None = None

    def connected(self, limits: Limits) -> None:
        self.transport.subscribe([(self.topic(Kind.CHUNK_DOWN), 0), (self.topic(Kind.GATEWAY), 1)])
        if self.fetch is None:
            self.parts = FileParts(self.folder)
            size = chunk_size_for(limits.version, limits.max_packet)
            part = self.parts.open(self.sha256, self.sha256, self.size, size)
            self.fetch = Fetch(self.sha256, self.size, size, part=part)
        self.fetch.resume()

    def heard(self, last: str, payload: bytes) -> None:
        assert self.fetch is not None
        if last == "state":
            state = decode_as(GatewayState, payload)
            if self.gateway not in (None, (state.boot, state.bseq)):
                self.fetch.resume()
            self.gateway = state.boot, state.bseq
            return
        for chunk in self.mischief.let_through(decode_as(Chunk, payload)):
            self.came += 1
            if not self.done and self.fetch.add(chunk, time.monotonic()):
                self.fetch.verify()
                self.finish(self.parts, self.sha256)
            self.progress = self.fetch.progress
            self.turn(time.monotonic())

    def turn(self, now: float) -> None:
        if self.fetch is not None and (get := self.fetch.next_get(now)):
            self.publish(Kind.GET, get)


class DownGateway(End):
    """Sends what is asked for, from its disk."""

    outgoing: Outgoing | None = None
    connections = 0

    def connected(self, limits: Limits) -> None:
        self.transport.subscribe([(self.topic(Kind.GET), 1)])
        self.connections += 1
        state = GatewayState(state="ready", boot=os.getpid(), bseq=self.connections)
        self.publish(Kind.GATEWAY, state, retain=True)

    def heard(self, last: str, payload: bytes) -> None:
        get = decode_as(Get, payload)
        if self.outgoing is None or self.outgoing.chunk_size != get.chunk_size:
            self.outgoing = Outgoing(FileSource(self.folder / "object", self.sha256), get.chunk_size)
        for chunk in self.outgoing.chunks(get.missing, get.window):
            self.publish(Kind.CHUNK_DOWN, chunk, 0)


class BigSender(End):
    """The reference: packets of a megabyte at QoS 1, on a broker that takes them; four wait at most."""

    sent = 0

    def turn(self, now: float) -> None:
        while self.sent < self.size and self.transport.backlog < 4 * BIG:
            self.transport.publish(self.topic(Kind.CHUNK_UP), bytes(min(BIG, self.size - self.sent)))
            self.sent += BIG
        self.done = self.sent >= self.size and not self.transport.backlog


class BigReceiver(End):
    """Takes them."""

    taken = 0

    def connected(self, limits: Limits) -> None:
        self.transport.subscribe([(self.topic(Kind.CHUNK_UP), 1)])

    def heard(self, last: str, payload: bytes) -> None:
        self.taken += len(payload)
        self.progress, self.done = self.taken / self.size, self.taken >= self.size


ENDS: dict[str, type[End]] = {
    "up-device": UpDevice,
    "up-gateway": UpGateway,
    "down-device": DownDevice,
    "down-gateway": DownGateway,
    "big-device": BigSender,
    "big-gateway": BigReceiver,
    "gib-device": BigReceiver,  # down
    "gib-gateway": BigSender,
}


def main() -> int:
    """One end, until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ENDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("status", type=Path)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("sha256")
    parser.add_argument("size", type=int)
    parser.add_argument("--seed", type=int, help="reorder and double what comes, drawn from this")
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    options = parser.parse_args()
    try:
        ENDS[options.role](options).run(stopping)
    except ProtocolError as error:
        print(f"{options.role}: {error}", file=sys.stderr)
        return 1
    return 0
