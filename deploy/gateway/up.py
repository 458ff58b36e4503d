"""`gateway up`: everything that a gateway's machine needs, made where it is lacking and mended where it differs."""

import datetime as dt
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fl_protocol.durable import make_directory
from fl_protocol.errors import ConfigError

from .brokers import Places, broker_files
from .certificates import make_certificates, ownership
from .plan import Accounts, Plan
from .services import STARTED, compose, sysusers, units
from .settings import gateway_toml
from .system import has_systemd, run
from .writing import Change, Wanted, apply, user_id

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What `up` changed, whether it started things, and what is left to the operator."""

    changes: list[Change] = field(default_factory=list)
    started: bool = False
    to_run: list[str] = field(default_factory=list)


def bring_up(plan: Plan, now: dt.datetime, say: Say, *, dry_run: bool = False, start: bool = True) -> Outcome:
    """Raises `ConfigError` before anything is written where something is lacking that we cannot make."""
    if plan.installed and os.geteuid() != 0 and not dry_run:
        raise ConfigError("only root can set up this machine", "`sudo`, or look first with --dry-run")
    outcome = Outcome()
    rest = _files(plan, dry_run)  # all that can be refused, before anything is written
    say("accounts")
    accounts = _accounts(plan, outcome, dry_run)
    say("certificates")
    if not dry_run:
        for folder in (plan.data, plan.pki, plan.broker_data, plan.etc):
            make_directory(folder)
    there = {path for path in plan.pki.rglob("*") if path.is_file()} if plan.pki.is_dir() else set()
    made = [plan.pki / name for name in make_certificates(plan, now, dry_run=dry_run)]
    outcome.changes += [Change(path, "changed" if path in there else "made") for path in made]
    say("files")
    owned = _folders(plan, accounts) + ownership(plan.pki, accounts)
    if not dry_run or all(one.path.exists() for one in owned):
        outcome.changes += [c for c in apply(owned, dry_run=dry_run) if c.path not in made]
    wanted = [_owned(one, plan, accounts) for one in rest()]
    outcome.changes += apply(wanted, dry_run=dry_run)
    if dry_run:
        return outcome
    if plan.installed and start and (has_systemd() if plan.how == "systemd" else shutil.which("docker")):
        say("services")
        (_start_units if plan.how == "systemd" else _start_compose)(plan, outcome)
        outcome.started = True
    else:
        outcome.to_run = by_hand(plan)
    return outcome


def _accounts(plan: Plan, outcome: Outcome, dry_run: bool) -> Accounts | None:
    """Make them on this machine; in a folder they are whoever runs this, unless they are named and there."""
    if not plan.installed:
        if plan.accounts == Accounts.myself():
            return None
        user_id(plan.accounts.broker), user_id(plan.accounts.gateway)
        return plan.accounts
    outcome.changes += apply([sysusers(plan)], dry_run=dry_run)
    if not dry_run:
        run(["systemd-sysusers", str(sysusers(plan).path)])
        user_id(plan.accounts.broker), user_id(plan.accounts.gateway)
    return plan.accounts


def _files(plan: Plan, dry_run: bool) -> Callable[[], list[Wanted]]:
    """What is written but for certificates; with compose the accounts' numbers have to be there first."""
    brokers = [
        Wanted(plan.etc / "mosquitto" / name, text, mode=0o640 if name == "enrollment.conf" else 0o644)
        for name, text in broker_files(plan, Places(plan)).items()
    ]
    settings = Wanted(plan.config, gateway_toml(plan), mode=0o640)
    services = units(plan) if plan.how == "systemd" else []
    return lambda: [*brokers, settings, *(services or compose(plan, dry_run=dry_run))]


def _owned(one: Wanted, plan: Plan, accounts: Accounts | None) -> Wanted:
    """Root's, and what only one of the two may read that one's."""
    if accounts is None:
        return one
    readers = {plan.config: accounts.gateway, plan.etc / "mosquitto" / "enrollment.conf": accounts.broker}
    return Wanted(one.path, one.text, one.mode, "root", readers.get(one.path, "root"))


def _folders(plan: Plan, accounts: Accounts | None) -> list[Wanted]:
    gateway, broker = (accounts.gateway, accounts.broker) if accounts else (None, None)
    return [
        Wanted(plan.data, mode=0o711, owner=gateway, group=gateway),
        Wanted(plan.broker_data, mode=0o700, owner=broker, group=broker),
    ]


def _start_units(plan: Plan, outcome: Outcome) -> None:
    changed = {change.path for change in outcome.changes}
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", *STARTED])
    stale = [name for name in STARTED if changed & _needs(plan, name)]
    if stale:
        run(["systemctl", "restart", *stale])
    run(["systemctl", "start", *STARTED])
    brokers = [name for name in STARTED[:2] if name not in stale]
    if brokers and any(path.suffix in (".acl", ".pem") for path in changed):
        run(["systemctl", "reload", *brokers])


def _needs(plan: Plan, unit: str) -> set[Path]:
    """The files that a service reads only when it starts."""
    mosquitto, aggregator = plan.etc / "mosquitto", plan.pki / "services/aggregator.pem"
    read = {
        "anabranch-broker.service": {mosquitto / "broker.conf", plan.etc / "broker.sh"},
        "anabranch-enrollment.service": {
            mosquitto / "enrollment.conf",
            plan.etc / "broker.sh",
            plan.pki / "services/enrollment.pem",
        },
        "anabranch-gateway.service": {plan.config, aggregator},
    }
    return {plan.units / unit} | read.get(unit, set())


def _start_compose(plan: Plan, outcome: Outcome) -> None:
    command = ["docker", "compose", "--file", str(plan.etc / "compose.yaml")]
    run([*command, "up", "--detach", *(["--force-recreate"] if outcome.changes else [])])


def by_hand(plan: Plan) -> list[str]:
    """What the operator types where nothing could be started."""
    if plan.how == "compose":
        return [f"docker compose --file {plan.etc / 'compose.yaml'} up --detach"]
    if plan.installed:
        return ["systemctl daemon-reload", f"systemctl enable --now {' '.join(STARTED)}"]
    return [
        f"sh {plan.etc / 'broker.sh'} {plan.etc / 'mosquitto/broker.conf'}",
        f"sh {plan.etc / 'broker.sh'} {plan.etc / 'mosquitto/enrollment.conf'}",
        f"broker-aggregator run --config {plan.config}",
    ]
