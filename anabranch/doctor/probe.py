"""One MQTT connection, taken by the hand: every packet when it is told to, cut when it is told to.

The transport of `fl_protocol/mqtt.py` hides what the doctor wants to see, so this drives paho itself, in one thread.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

Version = Literal["5", "3.1.1"]
ANSWER_S = 10.0
STEP_S = 0.02
DENIED = 0x87  # "Not authorized", MQTT 5


@dataclass(frozen=True)
class Where:
    """How the broker is reached."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30


@dataclass(frozen=True)
class Said:
    """A message that came."""

    topic: str
    payload: bytes
    retained: bool
    mid: int
    qos: int


class RefusedError(Exception):
    """The broker did not let us in, and its word why."""


class Probe:
    """A connection under `client_id`. A context manager: leaving it disconnects in good order.

    With `expiry_s` the session outlives the connection; with `holding` deliveries are not acknowledged until `release`.
    `connect` raises `RefusedError`, and `OSError` where there is no broker.
    """

    def __init__(
        self,
        where: Where,
        client_id: str,
        *,
        version: Version = "5",
        clean: bool = True,
        expiry_s: int = 0,
        will: tuple[str, bytes] | None = None,
        holding: bool = False,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.where, self.client_id, self.version, self.answer_s = where, client_id, version, answer_s
        self.clean, self.expiry_s, self.holding = clean, expiry_s, holding
        self.session_present = False
        self.properties: dict[str, Any] = {}
        self.messages: list[Said] = []
        self.ended = ""  # why the broker ended the connection
        self._answers: dict[int, int] = {}
        self._granted: dict[int, list[int | None]] = {}
        self._connack: Any = None
        five = version == "5"
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if five else clean,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._client.max_inflight_messages = 0
        self._client.connect_timeout = answer_s
        if where.username is not None:
            self._client.username_pw_set(where.username, where.password)
        if where.tls is not None:
            self._client.tls_set_context(where.tls)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._delivered
        self._client.on_publish = lambda _c, _d, mid, word, _p: self._answers.__setitem__(mid, word.value)
        self._client.on_subscribe = lambda _c, _d, mid, words, _p: self._granted.__setitem__(
            mid, [word.value for word in words]
        )

    def connect(self) -> Self:
        """CONNECT, and wait for the answer."""
        where = self.where
        if self.version == "5":
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self.expiry_s
            properties.ReceiveMaximum = 65535
            self._client.connect(
                where.host, where.port, where.keepalive_s, clean_start=self.clean, properties=properties
            )
        else:
            self._client.connect(where.host, where.port, where.keepalive_s)
        if not self.wait(lambda: self._connack is not None) or self._connack is None:
            raise RefusedError(self.ended or f"no answer to CONNECT in {self.answer_s:g} s")
        if self._connack.is_failure:
            raise RefusedError(str(self._connack))
        return self

    def wait(self, condition: Callable[[], object], seconds: float | None = None) -> bool:
        """Carry packets until the condition holds; False when the time is over or the connection is."""
        until = time.monotonic() + (self.answer_s if seconds is None else seconds)
        while not condition():
            if self.ended or time.monotonic() > until:
                return bool(condition())
            if self._client.loop(STEP_S) not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_AGAIN):
                self.ended = self.ended or "the connection ended"
        return True

    def settle(self, seconds: float = 0.5) -> None:
        """Carry packets until nothing has come for so long."""
        seen = -1
        while seen != len(self.messages):
            seen = len(self.messages)
            self.wait(lambda: len(self.messages) > seen, seconds)  # noqa: B023 - called before it changes

    def subscribe(self, text: str, qos: int = 1) -> int | None:
        """The granted QoS, 128 and more for a refusal, None without an answer."""
        options: Any = SubscribeOptions(qos=qos) if self.version == "5" else qos
        _, mid = self._client.subscribe((text, options) if self.version == "5" else (text, qos))
        self.wait(lambda: mid in self._granted)
        return self._granted.get(mid or -1, [None])[0]

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        """Publish and wait: the broker's reason code (0 to 127 is success), None without an answer."""
        mid = self.send(topic, payload, qos=qos, retain=retain)
        return self.answer(mid)

    def send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Hand a message to the socket; its packet identifier."""
        return int(self._client.publish(topic, payload, qos, retain).mid)

    def answer(self, mid: int, seconds: float | None = None) -> int | None:
        """The reason code of a message that was sent."""
        self.wait(lambda: mid in self._answers, seconds)
        return self._answers.get(mid)

    def release(self) -> None:
        """Acknowledge everything that was held."""
        for said in self.messages:
            if said.qos:
                self._client.ack(said.mid, said.qos)

    def cut(self) -> None:
        """End the connection as a dead device does: no DISCONNECT."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self.ended = self.ended or "cut"

    def close(self) -> None:
        """DISCONNECT."""
        if not self.ended:
            self._client.disconnect()
            self.wait(lambda: False, 0.5)

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # paho's callbacks, inside `wait`.

    def _connected(self, _client: Client, _data: Any, flags: Any, word: Any, said: Properties | None) -> None:
        self._connack, self.session_present = word, bool(flags.session_present)
        self.properties = said.json() if said is not None else {}  # type: ignore[no-untyped-call]

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, word: Any, _said: Properties | None) -> None:
        self.ended = self.ended or str(word)

    def _delivered(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        self.messages.append(Said(message.topic, bytes(message.payload), message.retain, message.mid, message.qos))
        if message.qos and not self.holding:
            client.ack(message.mid, message.qos)
