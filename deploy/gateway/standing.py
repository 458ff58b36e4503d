"""What is set up here, what of it answers, and how to stop it."""

import datetime as dt
import shutil
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from broker_aggregator.config import load_config
from broker_aggregator.pki import SERVICES
from fl_protocol.certificates import read_certificate
from fl_protocol.errors import ConfigError

from .certificates import read_names
from .plan import COMPOSE_HOST, LOCAL, Accounts, Plan
from .services import STARTED
from .system import has_systemd, run

WARN_DAYS = 30
ANSWER_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    good: bool
    words: str


def load_plan(root: Path) -> Plan:
    """What `up` was told, by the files that it wrote. Raises `ConfigError` where there is no gateway."""
    etc = root / "etc/anabranch-gateway"
    config = etc / "gateway.toml"
    if not config.exists():
        raise ConfigError(f"there is no gateway: {config} is not there", "`python -m deploy gateway up` makes one")
    compose = (etc / "compose.yaml").exists()
    settings = load_config(config, {})
    pki = root / "var/lib/anabranch-gateway/pki"
    local = {*LOCAL, *([COMPOSE_HOST] if compose else [])}
    ports = [int(line.split()[1]) for line in _lines(etc / "mosquitto/broker.conf", "listener ")]
    enroll = [int(line.split()[1]) for line in _lines(etc / "mosquitto/enrollment.conf", "listener ")]
    if len(ports) != 2 or len(enroll) != 1:
        raise ConfigError(f"{etc / 'mosquitto'} is not what `up` wrote", "run `python -m deploy gateway up` again")
    names = tuple(name for name in read_names(pki / "server.pem") if name not in local)
    return Plan(
        fleet=settings.gateway.fleet,
        names=names or LOCAL[:1],
        how="compose" if compose else "systemd",
        root=root,
        port=ports[0],
        services_port=ports[1],
        enroll_port=enroll[0],
        services_address=_lines(etc / "mosquitto/broker.conf", f"listener {ports[1]} ")[0].split()[2],
        accounts=Accounts(broker=_group(pki), gateway=_owner(pki)),
    )


def _lines(file: Path, begin: str) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.startswith(begin)]
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", "run `python -m deploy gateway up` again") from None


def _owner(path: Path) -> str:
    return path.owner()


def _group(path: Path) -> str:
    return path.group()


def look(plan: Plan, now: dt.datetime) -> list[Finding]:
    """Services, listeners, certificates and keys."""
    found = _services() if plan.installed and plan.how == "systemd" and has_systemd() else []
    for port, what in (
        (plan.port, "devices"),
        (plan.enroll_port, "enrolment"),
        *([] if plan.how == "compose" else [(plan.services_port, "services")]),
    ):
        found.append(_listener(plan, port, what))
    stems = ("ca", "server", *(f"services/{name}" for name in (*SERVICES, "enrollment")))
    found += [_certificate(plan.pki / f"{stem}.pem", now) for stem in stems]
    found.append(_revoked(plan.pki / "crl.pem"))
    found += [_key(plan.pki / f"{stem}.key") for stem in stems]
    return found


def _services() -> list[Finding]:
    found = []
    for unit in STARTED:
        word = run(["systemctl", "show", "--property=ActiveState", "--value", unit]).strip()
        found.append(Finding(unit, word == "active", word))
    return found


def _listener(plan: Plan, port: int, what: str) -> Finding:
    """Whether a broker with our certificate answers; it has no need of ours to shake hands."""
    address = "127.0.0.1" if what != "services" or plan.services_address == "0.0.0.0" else plan.services_address  # noqa: S104
    try:
        context = ssl.create_default_context(cafile=str(plan.pki / "ca.pem"))
        with (
            socket.create_connection((address, port), ANSWER_S) as plain,
            context.wrap_socket(plain, server_hostname=plan.names[0]) as tls,
        ):
            return Finding(f"{what}, port {port}", True, f"answers with {tls.version()}")
    except OSError as error:
        return Finding(f"{what}, port {port}", False, str(error))


def _certificate(path: Path, now: dt.datetime) -> Finding:
    try:
        days = (read_certificate(path.read_bytes(), path.name).not_valid_after_utc - now).days
    except (ConfigError, OSError) as error:
        return Finding(path.name, False, str(error))
    return Finding(path.name, days > WARN_DAYS, f"valid for {days} days")


def _revoked(path: Path) -> Finding:
    try:
        revoked = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(path.name, False, f"cannot be read: {error}")
    return Finding(path.name, True, f"{len(revoked)} revoked")


def _key(path: Path) -> Finding:
    """Nobody but its program's account reads a key."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(path.name, False, f"is not there: {error.strerror}")
    shared = path.stem in ("server", "enrollment")
    return Finding(path.name, not mode & (0o037 if shared else 0o077), f"mode {mode:04o}")


def take_down(plan: Plan) -> list[str]:
    """Stop and disable; what the operator has to run instead, where that cannot be done from here."""
    if plan.how == "compose":
        command = ["docker", "compose", "--file", str(plan.etc / "compose.yaml"), "down"]
        if plan.installed and shutil.which("docker"):
            run(command)
            return []
        return [" ".join(command)]
    if plan.installed and has_systemd():
        run(["systemctl", "disable", "--now", *STARTED])
        return []
    return [f"systemctl disable --now {' '.join(STARTED)}"] if plan.installed else ["kill what you started by hand"]
