"""What runs the brokers and the gateway: systemd units, or a compose project."""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from fl_protocol.errors import ConfigError

from .brokers import ENROLLMENT_MEMORY_MB, template
from .plan import Plan
from .writing import Wanted, group_id, user_id

STARTED = (
    "anabranch-broker.service",
    "anabranch-enrollment.service",
    "anabranch-gateway.service",
    "anabranch-certificates.path",
    "anabranch-renew.timer",
)
UNITS = (*STARTED, "anabranch-certificates.service", "anabranch-renew.service")
HIDDEN = ("/home", "/root", "/tmp", "/var/tmp")  # noqa: S108 - folders that the units do not see
PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"  # Debian keeps mosquitto where users do not look
TLS_MB = 256  # OpenSSL's buffers of some thousands of connections, which mosquitto's own limit does not count


def mosquitto() -> Path:
    """The broker's program. Raises `ConfigError`."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=PLACES)
    if found is None:
        raise ConfigError("mosquitto is not installed", "`apt install mosquitto`, or `--how compose`")
    return Path(found)


def program(plan: Plan) -> Path:
    """The `broker-aggregator` of this virtual environment. Raises `ConfigError` for one that a service cannot see."""
    found = Path(sys.prefix) / "bin" / "broker-aggregator"
    if plan.installed and not found.exists():
        raise ConfigError(f"there is no {found}", 'install it there: `pip install "anabranch[aggregator]"`')
    if plan.installed and any(found.is_relative_to(folder) for folder in HIDDEN):
        raise ConfigError(
            f"{found} lies where a service may not look",
            "`python3 -m venv /opt/anabranch-gateway/venv`, install anabranch there, and run this from there",
        )
    return found


def _values(plan: Plan) -> dict[str, object]:
    package = str(__package__).partition(".")[0]
    return {
        "program": program(plan),
        "python": sys.executable,
        "package": package,
        "pythonpath": Path(str(files(package))).parent,
        "etc": plan.etc,
        "data": plan.data,
        "pki": plan.pki,
        "broker_user": plan.accounts.broker,
        "gateway_user": plan.accounts.gateway,
        "broker_memory_mb": plan.memory_mb + TLS_MB,
        "enrollment_memory_mb": ENROLLMENT_MEMORY_MB + TLS_MB,
    }


def sysusers(plan: Plan) -> Wanted:
    """The gateway's account, and with compose the broker's, for systemd-sysusers."""
    text = template("anabranch-gateway.sysusers").substitute(gateway_user=plan.accounts.gateway)
    if plan.how == "compose":
        text += f'u {plan.accounts.broker} - "Anabranch broker" - -\n'
    return Wanted(plan.root / "etc/sysusers.d/anabranch-gateway.conf", text)


def units(plan: Plan) -> list[Wanted]:
    """The units' files. Raises `ConfigError` where a program is missing."""
    mosquitto()
    values = _values(plan)
    return [supervisor(plan), *(Wanted(plan.units / name, template(name).substitute(values)) for name in UNITS)]


def supervisor(plan: Plan) -> Wanted:
    """The script that runs a broker, and keeps of its log what a person wants."""
    return Wanted(plan.etc / "broker.sh", template("broker.sh").template, mode=0o755)


def compose(plan: Plan, *, dry_run: bool = False) -> list[Wanted]:
    """The compose project's files; the accounts have to be there, but for a dry run. Raises `ConfigError`."""
    values = {
        "port": plan.port,
        "enroll_port": plan.enroll_port,
        "broker_ids": _ids(plan.accounts.broker, guess=dry_run),
        "gateway_ids": _ids(plan.accounts.gateway, guess=dry_run),
        "broker_memory_mb": plan.memory_mb + TLS_MB,
        "enrollment_memory_mb": ENROLLMENT_MEMORY_MB + TLS_MB,
        "etc": plan.etc,
        "data": plan.data,
        "pki": plan.pki,
        "broker_data": plan.broker_data,
    }
    return [
        Wanted(plan.etc / "compose.yaml", template("compose.yaml").substitute(values)),
        supervisor(plan),
    ]


def _ids(account: str, *, guess: bool = False) -> str:
    try:
        return f"{user_id(account)}:{group_id(account)}"
    except ConfigError:
        if guess:
            return account
        raise
