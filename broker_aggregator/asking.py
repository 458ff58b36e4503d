"""The operator's side of a command: sign it, send it over MQTT, wait for the gateway's answer."""

import secrets
import time
from collections.abc import Mapping

from broker_aggregator.config import GatewayConfig
from fl_protocol.codec import decode_as, parse_json
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.messages import Answer, Ask
from fl_protocol.signing import seal
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming

ANSWER_S = 15.0
AGAIN_S = 2.0  # a gateway that is only just starting has not heard the first one


def ask_gateway(config: GatewayConfig, name: str, arguments: Mapping[str, object], timeout: float = ANSWER_S) -> Answer:
    """Ask the running gateway and return its answer. Raises `ConfigError` when there is no broker or no gateway."""
    key = load_or_create_key(config.key_path)
    cid = secrets.token_hex(8)
    topic = build(Kind.COMMAND, config.gateway.fleet, name=name, cid=cid)
    # Microseconds since 1970 grow from one command to the next without a place to keep a counter.
    ask = Ask(name=name, arguments=dict(arguments), counter=time.time_ns() // 1000)
    transport = transport_to(config.broker, f"op-{cid}", session_expiry_s=0)
    host, port = config.broker.address
    payload = seal(ask, key, config.gateway.fleet, topic)
    until, why = time.monotonic() + timeout, "no answer yet"
    transport.start()
    try:
        while (left := until - time.monotonic()) > 0:
            news = transport.receive(min(left, AGAIN_S))
            if not news and not why:
                transport.publish(topic, payload)
            for incoming in news:
                if isinstance(incoming, Disconnected):
                    why = incoming.reason
                answer = _read(incoming, topic)
                if answer is not None:
                    return answer
                if isinstance(incoming, Connected):
                    why = ""
                    transport.subscribe([(topic, 1)])
                    transport.publish(topic, payload)
    finally:
        transport.close()
    if why:
        raise ConfigError(f"no broker at {host}:{port}: {why}", "start it, or mend [broker] in the configuration")
    raise ConfigError(
        f"no gateway of fleet {config.gateway.fleet} answered within {timeout:.0f} s",
        "start it with `broker-aggregator run --config FILE`; it must use the same data_dir, whose key signs commands",
    )


def _read(incoming: Incoming, topic: str) -> Answer | None:
    if not isinstance(incoming, Delivery) or incoming.topic != topic or not incoming.payload:
        return None
    try:
        plain = parse_json(incoming.payload)
        return decode_as(Answer, incoming.payload) if isinstance(plain, dict) and "status" in plain else None
    except ProtocolError:
        return None
