"""What the gateway's loop asks of the machine that it runs on: time, room on its disk, and a way to the broker."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker_aggregator.config import GatewayConfig
from fl_protocol.connecting import transport_to
from fl_protocol.transport import Transport, WillOf


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def free_bytes(path: Path) -> int:
    """Bytes left on the disk that holds `path`."""
    return shutil.disk_usage(path).free


@dataclass(frozen=True)
class Machine:
    """The real one, unless told; `monotonic` in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    now_ms: Callable[[], int] = now_ms
    free_bytes: Callable[[Path], int] = free_bytes


REAL = Machine()
Connect = Callable[[GatewayConfig, WillOf], Transport]


def connect_to_broker(config: GatewayConfig, will: WillOf) -> Transport:
    """The gateway's transport, not yet started. Raises `ConfigError` for broker settings that can never work."""
    return transport_to(
        config.broker,
        f"gateway-{config.gateway.fleet}",
        will,
        session_expiry_s=7 * 86400,
        receive_maximum=config.gateway.receive_maximum,
    )
