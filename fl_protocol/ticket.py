"""The ticket that lets one new device in: a small TOML file that the gateway writes and the device reads.

Its `secret` never travels: it is the key of the proof in the device's request (see `enrolling.py`). The ticket is worth
nothing once the device that used it has been seen, or when it has expired.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from fl_protocol.errors import ConfigError
from fl_protocol.messages import Count, Id, Key
from fl_protocol.settings import load_settings

FILE_NAME = "anabranch-ticket.toml"
MAX_BYTES = 16 << 10
Secret = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Port = Annotated[int, Meta(ge=1, le=65535)]


@dataclass(frozen=True, kw_only=True)
class TicketBroker:
    """Where the device finds its broker: `port` asks for its certificate, `enroll_port` for none."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Port = 8883
    enroll_port: Port = 8884


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What a device is given instead of keys. `public_key` is the fleet's; `issued` is the gateway's clock, Unix s."""

    fleet: Id
    claim: Id
    secret: Secret = field(repr=False)
    public_key: Key
    issued: Count
    ca: Annotated[str, Meta(max_length=8192)]
    broker: TicketBroker

    def to_toml(self) -> str:
        """The file's text; `load_ticket` reads it."""
        quoted = {k: json.dumps(getattr(self, k)) for k in ("fleet", "claim", "secret", "public_key", "issued")}
        lines = [f"{key} = {value}" for key, value in quoted.items()]
        broker = self.broker
        return "\n".join(
            [
                "# Lets one device in, once. Keep it to yourself until then.",
                *lines,
                f'ca = """\n{self.ca.strip()}\n"""',
                "",
                "[broker]",
                f"host = {json.dumps(broker.host)}",
                f"port = {broker.port}",
                f"enroll_port = {broker.enroll_port}",
                "",
            ]
        )


def load_ticket(path: Path) -> Ticket:
    """Raises `ConfigError` for a file that is none."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(
            f"there is no ticket at {path}: {error.strerror}",
            "`broker-aggregator device ticket` on the gateway makes one",
        ) from None
    if size > MAX_BYTES:
        raise ConfigError(f"{path} has {size} bytes; a ticket has at most {MAX_BYTES}", "name the ticket itself")
    return load_settings(Ticket, path, {})
