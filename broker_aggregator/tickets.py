"""Tickets for new devices: a claim at the running gateway, and the file that its device is given."""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from broker_aggregator.asking import ask_gateway
from broker_aggregator.config import GatewayConfig
from fl_protocol.durable import write_durably
from fl_protocol.enrolling import claim_secret
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key
from fl_protocol.ticket import Ticket, TicketBroker


def write_tickets(
    config: GatewayConfig,
    devices: Sequence[str],
    folder: Path,
    *,
    hours: int,
    hardware: str,
    again: bool,
    timeout: float,
) -> list[dict[str, str]]:
    """Write `folder`/DEVICE.toml, mode 0600, for each device; who they are for. Raises `ConfigError`."""
    section = config.enrollment
    if section.pki is None or not section.host:
        missing = "pki" if section.pki is None else "host"
        raise ConfigError(
            f"[enrollment] names no `{missing}`", "`python -m deploy gateway up` writes it, or set it by hand"
        )
    try:
        authority = (section.pki / "ca.pem").read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the authority's certificate: {error}", "name the folder in `pki`") from None
    key, fleet = load_or_create_key(config.key_path), config.gateway.fleet
    written = []
    for device in devices:
        claim = secrets.token_hex(8)
        arguments = {"claim": claim, "device": device, "hours": hours, "hardware": hardware, "again": again}
        answer = ask_gateway(config, "device-ticket", arguments, timeout)
        if answer.status == "failed":
            raise ConfigError(answer.message, answer.hint)
        ticket = Ticket(
            fleet=fleet,
            claim=claim,
            secret=claim_secret(key, fleet, claim),
            public_key=key.public,
            issued=int(time.time()),
            ca=authority,
            broker=TicketBroker(host=section.host, port=section.port, enroll_port=section.enroll_port),
        )
        path = folder / f"{device}.toml"
        write_durably(path, ticket.to_toml().encode(), mode=0o600)
        written.append({"device": device, "claim": claim, "ticket": str(path)})
    return written
