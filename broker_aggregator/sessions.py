"""How the gateway ends a device's open connection on any broker: it connects under the device's client id.

A broker has one connection a client id (MQTT 5, 3.1.4-3) and closes the older one. It is done again a few times, since
a broker takes a moment to read its new list of revoked certificates, and a device that is thrown out comes back at
once: a connection that is open survives what is in that list.
"""

import logging
import threading
import time

from broker_aggregator.config import GatewayConfig
from fl_protocol.connecting import transport_to
from fl_protocol.errors import ConfigError
from fl_protocol.transport import Connected

log = logging.getLogger("aggregator")
AFTER_S = (0.5, 3.0, 8.0)  # from the revocation
TAKE_OVER_S = 5.0


def close_session(config: GatewayConfig, device: str) -> threading.Thread:
    """Begin to; the thread ends after the last time."""
    thread = threading.Thread(target=_close, args=(config, device), name=f"close-{device}", daemon=True)
    thread.start()
    return thread


def _close(config: GatewayConfig, device: str) -> None:
    began = time.monotonic()
    for after in AFTER_S:
        threading.Event().wait(max(0.0, began + after - time.monotonic()))
        for client_id in (device, f"{config.gateway.fleet}.{device}"):  # the first where the broker names its clients
            try:
                _take_over(config, client_id)
            except (ConfigError, OSError) as error:
                log.warning("cannot close the connection of %s: %s", device, error)


def _take_over(config: GatewayConfig, client_id: str) -> None:
    transport = transport_to(config.broker, client_id, session_expiry_s=0)
    transport.start()
    until = time.monotonic() + TAKE_OVER_S
    try:
        while (left := until - time.monotonic()) > 0:
            if any(isinstance(news, Connected) for news in transport.receive(left)):
                return
    finally:
        transport.close()
    log.warning("the broker did not answer to close the connection of %s", client_id)
