"""MQTT 5 and 3.1.1 over paho; the one file that imports it.

One thread of ours drives paho's client, a new one for every CONNECT, and nothing else touches it. That is because of
what was measured (protocol.md, "Facts measured"): paho's own thread dies silently of an exception in a callback (5), it
reconnects without jitter (11), sends a packet that the broker does not take again for ever (2), and reads neither
Maximum Packet Size nor Receive Maximum (2). Callbacks here only put things into queues; whatever they raise ends the
connection, visibly, and the next one begins.

A new client also means new packet identifiers: an unacknowledged message is published again, not marked as a duplicate.
At QoS 1 a broker keeps nothing by which it could tell.
"""

import contextlib
import logging
import select
import socket
import ssl
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fl_protocol.queues import MAX_PACKET, Outgoing, Receipt
from fl_protocol.reconnect import MAX_PACKET_311, NOT_US, Backoff, Options, Reconnecting, Shared, Version, Wanted
from fl_protocol.transport import Connected, Delivery, Limits, Undeliverable, WillOf

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # for one address to answer, and again for one step of the TLS handshake
TICK_S = 1.0  # how often an idle connection looks at its keep-alive
READ_AHEAD = 16 << 10  # bytes; a TLS record's size
READ_BURST = 200  # packets read before writes have their turn


class MqttTransport(Reconnecting):
    """A `Transport` to a real broker at `host:port`; the session is kept under `client_id`.

    `will(bseq)` is called on the network thread. `version` "auto" means MQTT 5 where the broker has it, else 3.1.1.
    `receive_maximum` is how many QoS 1 deliveries may be unacknowledged (3.1.1 cannot say so: half of what is unread),
    `max_packet` the bytes of a packet that the broker takes (3.1.1: 128 KiB unless given; MQTT 5 brokers say it, and
    the smaller holds), `max_incoming` the most that we take, `hang_s` the silence after which the network thread is
    replaced. Raises `ConfigError` for settings that can never work.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        will: WillOf | None = None,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        version: Wanted = "auto",
        session_expiry_s: int = 86400,
        keepalive_s: int = 30,
        receive_maximum: int = 64,
        max_packet: int | None = None,
        max_incoming: int = 1 << 20,
        reconnect_min_s: float = 1.0,
        reconnect_max_s: float = 300.0,
        hang_s: float = 120.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        options = Options(
            host,
            port,
            client_id,
            version,
            will,
            username,
            password,
            tls,
            session_expiry_s,
            keepalive_s,
            receive_maximum,
            max_packet,
            max_incoming,
        )
        super().__init__(
            lambda *arguments: _Connection(options, *arguments),
            Shared(Outgoing(max_packet=options.ceiling), hang_s),
            version,
            Backoff(reconnect_min_s, max(reconnect_min_s, reconnect_max_s), rng or np.random.default_rng()),
        )


class _Client(Client):
    """paho's client with its socket's bytes counted and read ahead, and its last socket error kept."""

    shared: Shared
    blocked = False  # the socket has nothing to read for now, TLS's own buffer included
    error: OSError | None = None
    _ahead = b""

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for single bytes, and a system call for each lets another thread have the interpreter each time.
        if not self._ahead:
            try:
                self._ahead = super()._sock_recv(max(bufsize, READ_AHEAD))
            except BlockingIOError:
                self.blocked = True
                raise
            except OSError as error:
                self.error = error
                raise
            self.shared.bytes_received += len(self._ahead)
        data, self._ahead = self._ahead[:bufsize], self._ahead[bufsize:]
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            sent = super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = error
            raise
        self.shared.bytes_sent += sent
        return sent


class _Connection:
    """From one CONNECT to the end of its socket, on the network thread; the caller's may `wake` and `abandon` it."""

    def __init__(self, options: Options, shared: Shared, version: Version, bseq: int, connack_s: float) -> None:
        self.options, self.shared, self.version, self.bseq = options, shared, version, bseq
        self._connack_s = connack_s
        self.reached = False  # a socket was opened
        self.established_at: float | None = None  # CONNACK: accepted
        self.refusal = ""  # CONNACK: the broker's word
        self.reason = "the connection ended"  # why, for people
        self._abandoned = False
        self._reading = False
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._client = self._build()

    def _build(self) -> _Client:
        o, five = self.options, self.version == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            o.client_id,
            clean_session=None if five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.shared = self.shared
        client.max_inflight_messages = 0  # no limit of paho's: `Outgoing` holds the window
        client.connect_timeout = CONNECT_S
        if o.username is not None:
            client.username_pw_set(o.username, o.password)
        if o.tls is not None:
            client.tls_set_context(o.tls)
        client.on_socket_open = lambda _client, _data, sock: self._opened(sock)
        client.on_connect = lambda _client, _data, flags, word, said: self._answered(flags, word, said)
        client.on_message = lambda _client, _data, message: self._delivered(message)
        client.on_publish = lambda _client, _data, mid, word, _said: self._acknowledged(mid, word)
        client.on_subscribe = lambda _client, _data, mid, words, _said: self._subscribed(mid, words)
        client.on_unsubscribe = lambda _client, _data, mid, words, _said: self._subscribed(mid, words)
        client.on_disconnect = lambda _client, _data, flags, word, _said: self._ended(flags, word)
        return client

    # The caller's thread.

    def wake(self) -> None:
        """Make the network thread look at its queues."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: there is nobody to wake
            self._waker.send(b"\0")

    def abandon(self) -> None:
        """Leave a network thread that hangs or died to itself: from now on it changes nothing. Call under the lock."""
        self._abandoned = True
        self._close()

    def _close(self) -> None:
        for sock in (self._client.socket(), self._waker, self._wakened):
            with contextlib.suppress(OSError):
                if sock is not None:
                    sock.close()

    # The network thread.

    def _let_go(self) -> None:
        """Break the circle of client and callbacks: what the client holds of messages goes now, not in a while."""
        for what in ("connect", "message", "publish", "subscribe", "unsubscribe", "disconnect", "socket_open"):
            setattr(self._client, f"on_{what}", None)

    def run(self) -> None:
        """Connect, and carry traffic until the socket is gone; `reason` says why it went."""
        try:
            self._connect()
            self._carry()
        except OSError as error:
            self.reason = self.options.explain(error)
        except Exception as error:
            log.exception("connection %d of %s", self.bseq, self.options.client_id)
            self.reason = f"internal error: {type(error).__name__}: {error}"
        finally:
            self._close()
            self._let_go()

    def _connect(self) -> None:
        o = self.options
        will = o.will(self.bseq) if o.will else None
        if will:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        if self.version == "5":
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = o.session_expiry_s
            properties.ReceiveMaximum = o.receive_maximum
            properties.MaximumPacketSize = o.max_incoming
            self._client.connect(o.host, o.port, o.keepalive_s, clean_start=False, properties=properties)
        else:
            self._client.connect(o.host, o.port, o.keepalive_s)

    def _carry(self) -> None:
        give_up = monotonic() + self._connack_s
        while (sock := self._client.socket()) is not None:
            self.shared.alive()
            if self.established_at is None and monotonic() > give_up:
                raise ConnectionError(f"CONNECT was not answered in {self._connack_s:g} s")
            self._send()
            reading = self._has_room()
            if self._client.socket() is None:
                return
            writing = self._client.want_write()
            poll = select.poll()
            poll.register(self._wakened, select.POLLIN)
            poll.register(sock.fileno(), select.POLLIN * reading | select.POLLOUT * writing)
            more = reading and not self._client.blocked  # the last burst left something, perhaps out of poll's sight
            ready = dict(poll.poll(0 if more else TICK_S * 1000))
            if self._wakened.fileno() in ready:
                self._wakened.recv(4096)
            if more or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
                self._read()
            if writing:
                self._client.loop_write()
            self._client.loop_misc()

    def _read(self) -> None:
        self._reading, self._client.blocked = True, False
        for _ in range(READ_BURST):
            self._client.loop_read()
            if self._client.blocked or self._client.socket() is None or not self._has_room():
                break
        self._reading = False
        with self._sharing() as shared:
            shared.lock.notify_all()  # once for all of the burst: each wakes the caller's thread

    def _has_room(self) -> bool:
        """Else the rest is left to TCP: 3.1.1 has no receive maximum, and mosquitto 2.0.11 sends up to twice of it."""
        return self.shared.unread.durable <= 2 * self.options.receive_maximum

    def _send(self) -> None:
        with self._sharing() as shared:
            if self.established_at is not None:
                self._send_from(shared)
            if shared.flush_until is None:
                return
            idle = not (shared.acks or shared.subscriptions or shared.outgoing or self._client.want_write())
            if idle or monotonic() > shared.flush_until:
                self._client.disconnect()

    def _send_from(self, shared: Shared) -> None:
        while self._writable() and shared.acks:
            self._client.ack(shared.acks.popleft(), 1)
        while self._writable() and (batch := shared.subscriptions.take()):
            subscribed = [(text, qos) for text, qos in batch.items() if qos is not None]
            _, mid = self._client.subscribe(subscribed) if subscribed else self._client.unsubscribe(list(batch))
            assert mid is not None
            shared.subscriptions.sent(mid, batch)
        while self._writable() and (packet := shared.outgoing.take()):
            info = self._client.publish(packet.topic, packet.payload, packet.qos, packet.retain)
            if packet.qos:
                shared.outgoing.sent(info.mid, packet)
            if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                raise ConnectionError("the broker left a packet unacknowledged for 65,535 others")

    def _writable(self) -> bool:
        return self._client.socket() is not None and not self._client.want_write()

    @contextlib.contextmanager
    def _sharing(self) -> Iterator[Shared]:
        with self.shared.lock:
            if self._abandoned:
                raise ConnectionAbortedError("abandoned")
            yield self.shared

    # paho's callbacks, all of them inside `_connect`, `_send` and `_read`.

    def _opened(self, sock: Any) -> None:
        if self._abandoned:  # a CONNECT would take the session from the connection that is in use
            raise ConnectionAbortedError("abandoned")
        self.reached = True
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a PUBACK waits for TCP's delayed ACK

    def _answered(self, flags: ConnectFlags, word: ReasonCode, said: Properties | None) -> None:
        if word.is_failure:
            self.refusal = str(word)
            return
        limits = self._limits(said)
        with self._sharing() as shared:
            shared.unread.connected(Connected(flags.session_present, self.bseq, limits))
            for lost in shared.outgoing.connected(limits):
                shared.unread.add(lost)
        self.established_at = monotonic()

    def _limits(self, said: Properties | None) -> Limits:
        if self.version != "5":
            return Limits(self.version, self.options.max_packet or MAX_PACKET_311)
        largest = min(getattr(said, "MaximumPacketSize", MAX_PACKET), self.options.ceiling)
        return Limits(self.version, largest, getattr(said, "ReceiveMaximum", 65535))

    def _delivered(self, message: MQTTMessage) -> None:
        receipt = Receipt(self.bseq, message.mid) if message.qos else None
        with self._sharing() as shared:
            try:
                topic = message.topic if len(message.payload) <= self.options.max_incoming else ""
            except UnicodeDecodeError:
                topic = ""
            if topic:
                shared.unread.add(Delivery(topic, bytes(message.payload), message.retain, receipt))
                return
            shared.unread.dropped += 1  # and acknowledged, for else it comes again for ever
            if receipt:
                shared.acks.append(receipt.mid)

    def _acknowledged(self, mid: int, word: ReasonCode) -> None:
        if not self._reading:  # paho calls this for QoS 0 too, once written; a PUBACK is something read
            return
        with self._sharing() as shared:
            packet = shared.outgoing.acknowledged(mid)
            if packet and word.is_failure:
                shared.unread.add(packet.undeliverable(f"the broker refused it: {word}"))

    def _subscribed(self, mid: int, words: list[ReasonCode]) -> None:
        with self._sharing() as shared:
            for text, word in zip(shared.subscriptions.answered(mid), words, strict=False):  # 3.1.1: no words
                if word.is_failure:
                    shared.unread.add(Undeliverable(text, 0, f"the broker refused the subscription: {word}"))

    def _ended(self, flags: DisconnectFlags, word: ReasonCode) -> None:
        if self.refusal:
            hint = "; check user name, password and certificate" if self.refusal in NOT_US else ""
            self.reason = f"the broker refused the connection: {self.refusal}{hint}"
        elif flags.is_disconnect_packet_from_server:
            self.reason = f"the broker closed the connection: {word}"
        elif str(word) == "Keep alive timeout":
            self.reason = f"the broker was silent for {self.options.keepalive_s} s and did not answer a ping"
        elif self._client.error:
            self.reason = self.options.explain(self._client.error)
        else:
            when = "" if self.established_at else " before it answered CONNECT"
            self.reason = f"the broker closed the connection{when}"
