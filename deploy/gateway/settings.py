"""`gateway.toml`: ours are a few keys of it; whatever else the operator wrote, comments too, stays as it is."""

from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from fl_protocol.errors import ConfigError

from .brokers import loopback
from .plan import COMPOSE_HOST, Plan

HEAD = """\
# The gateway's configuration: docs/quickstart.md. `python -m deploy gateway up` keeps the keys that it wrote here as
# they ought to be, and leaves yours alone.
"""


def gateway_toml(plan: Plan) -> str:
    """The file's text, made of what is there. Raises `ConfigError` for a file that is no TOML, or another fleet's."""
    try:
        text = plan.config.read_text("utf-8")
    except FileNotFoundError:
        text = HEAD
    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{plan.config} is not TOML: {error}", "mend it, or move it away for a new one") from None
    fleet = document.get("gateway", {}).get("fleet", plan.fleet)
    if fleet != plan.fleet:
        raise ConfigError(
            f"{plan.config} is the gateway of the fleet {fleet}, not {plan.fleet}", "one machine serves one fleet"
        )
    for section, values in _ours(plan).items():
        if section not in document:
            document.add(section, tomlkit.table())
        table: Any = document[section]
        for key, value in values.items():
            if table.get(key) != value:
                table[key] = value
    return tomlkit.dumps(document)


def _ours(plan: Plan) -> dict[str, dict[str, Any]]:
    compose = plan.how == "compose"
    data = Path("/var/lib/anabranch-gateway") if compose else plan.data
    pki = data / "pki"
    return {
        "gateway": {"fleet": plan.fleet, "data_dir": str(data)},
        "broker": {
            "host": COMPOSE_HOST if compose else loopback(plan.services_address),
            "port": plan.services_port,
            "ca": str(pki / "ca.pem"),
            "certificate": str(pki / "services/aggregator.pem"),
            "key": str(pki / "services/aggregator.key"),
        },
        "enrollment": {
            "pki": str(pki),
            "host": plan.names[0],
            "port": plan.port,
            "enroll_port": plan.enroll_port,
        },
    }
