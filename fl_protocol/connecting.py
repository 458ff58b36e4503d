"""A `[broker]` section as a transport."""

from typing import Any

from fl_protocol.broker import BrokerConfig
from fl_protocol.mqtt import MqttTransport
from fl_protocol.transport import WillOf


def transport_to(broker: BrokerConfig, client_id: str, will: WillOf | None = None, **options: Any) -> MqttTransport:
    """A transport to this broker, not yet started; `options` go to `MqttTransport`. Raises `ConfigError`."""
    host, port = broker.address
    options.setdefault("tls", broker.tls())
    return MqttTransport(
        host,
        port,
        client_id,
        will=will,
        username=broker.username,
        password=broker.password,
        version=broker.mqtt_version,
        keepalive_s=broker.keepalive_s,
        max_packet=broker.max_packet,
        reconnect_max_s=broker.reconnect_max_s,
        **options,
    )
