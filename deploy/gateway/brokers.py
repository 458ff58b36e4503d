"""mosquitto's configuration: two processes, three listeners, and who may read and write what on each."""

import secrets
from importlib.resources import files
from pathlib import Path
from string import Template

from .plan import COMPOSE_HOST, Plan

MAX_PACKET = 512 << 10  # bytes; twice the protocol's largest message
MAX_QUEUED = 10_000  # messages for one client that is away
MAX_QUEUED_BYTES = 128 << 20
ENROLLMENT_MEMORY_MB = 64
ENROLLMENT_CONNECTIONS = 200
_LOCAL = "local_clientid "


def template(name: str) -> Template:
    """One of the texts in `templates/`."""
    return Template((files(__package__) / "templates" / name).read_text("utf-8"))


def broker_files(plan: Plan, places: "Places") -> dict[str, str]:
    """File name -> text, as they lie in one folder."""
    values = {
        "fleet": plan.fleet,
        "user": plan.accounts.broker,
        "port": plan.port,
        "enroll_port": plan.enroll_port,
        "services_port": plan.services_port,
        "services_address": "0.0.0.0" if plan.how == "compose" else plan.services_address,  # noqa: S104  # its network's
        "address": "",
        "autosave_s": plan.autosave_s,
        "max_packet": MAX_PACKET,
        "max_queued": MAX_QUEUED,
        "max_queued_bytes": MAX_QUEUED_BYTES,
        "max_connections": ENROLLMENT_CONNECTIONS,
        "bridge_host": COMPOSE_HOST if plan.how == "compose" else loopback(plan.services_address),
        "local_clientid": local_client_id(plan.etc / "mosquitto" / "enrollment.conf"),
        "log_dest": "stderr",
        "log_timestamp": "false" if plan.how == "systemd" and plan.installed else "true",  # the journal has its own
        "data": places.data,
        "pki": places.pki,
        "etc": places.etc,
    }
    memory = {"broker.conf": plan.memory_mb, "enrollment.conf": ENROLLMENT_MEMORY_MB}
    return {
        name: template(name).substitute(values, memory=memory.get(name, 0) << 20).replace(" \n", "\n")
        for name in ("broker.conf", "enrollment.conf", "devices.acl", "services.acl", "enrollment.acl")
    }


class Places:
    """Where the brokers find things: on this machine, or inside a container."""

    def __init__(self, plan: Plan) -> None:
        compose = plan.how == "compose"
        self.data = Path("/var/lib/anabranch-broker") if compose else plan.broker_data
        self.pki = Path("/var/lib/anabranch-gateway/pki") if compose else plan.pki
        self.etc = Path("/etc/anabranch-gateway/mosquitto") if compose else plan.etc / "mosquitto"


def local_client_id(file: Path) -> str:
    """The bridge's name on its own broker, where strangers choose theirs: drawn once, and told to nobody."""
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            if line.startswith(_LOCAL):
                return line.removeprefix(_LOCAL)
    return f"bridge.{secrets.token_hex(16)}"


def loopback(address: str) -> str:
    """How a program of this machine reaches a listener on `address`."""
    return "127.0.0.1" if address in ("0.0.0.0", "::", "127.0.0.1") else address  # noqa: S104
