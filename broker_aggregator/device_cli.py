"""`broker-aggregator device command`, `commands` and `configure`: what a device is told to do, and how it is set up."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from broker_aggregator.asking import ask_gateway
from broker_aggregator.commanding import ALL
from broker_aggregator.config import GatewayConfig
from broker_aggregator.fleet import CommandRecord
from broker_aggregator.release_cli import pick_release
from broker_aggregator.store_reader import StoreReader
from fl_protocol.adjustable import ADJUSTABLE
from fl_protocol.codec import to_plain
from fl_protocol.device_commands import DEVICE_COMMANDS, MAX_LINES, UPDATE
from fl_protocol.errors import ConfigError

LOOK_S = 0.2  # how often the store is looked at for an answer
GRACE_S = 15.0  # after its deadline a running gateway has ended a command
DEADLINE_S = {"train-now": 900, UPDATE: 900}  # unless told; of all others
USUAL_DEADLINE_S = 60
console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The gateway's TOML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def add_device_commands(
    app: typer.Typer, load: Callable[[Path], GatewayConfig], timeout_s: Callable[[], float]
) -> None:
    """Add the three commands; `load` reads a configuration, `timeout_s` says how long to wait for the gateway."""

    def ask(config: GatewayConfig, name: str, arguments: dict[str, object]) -> None:
        answer = ask_gateway(config, name, arguments, timeout_s())
        if answer.status == "failed":
            raise ConfigError(answer.message, answer.hint)

    @app.command("command")
    def command(
        device: Annotated[str, typer.Argument(help="Its id.")],
        name: Annotated[str, typer.Argument(help=", ".join(DEVICE_COMMANDS) + ".")],
        config: ConfigOption,
        minutes: Annotated[int | None, typer.Option(help="Of `pause`; else until `resume`.", min=1)] = None,
        lines: Annotated[int | None, typer.Option(help="Of `collect-logs`.", min=1, max=MAX_LINES)] = None,
        release: Annotated[str | None, typer.Option(help="Of `update-agent`: one that `release list` shows.")] = None,
        deadline: Annotated[
            int | None,
            typer.Option(
                help="Seconds until the device must have answered; 60, of train-now and update-agent 900.", min=1
            ),
        ] = None,
        wait: Annotated[bool, typer.Option("--wait", help="Until it is over; ends with 1 unless successful.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Tell DEVICE to do something: train-now, pause, resume, collect-logs, forget-data, report or update-agent.

        A device that is away hears it when it comes back, if that is before the deadline. `train-now` skips waiting
        and never the gate; `forget-data` erases the device's ring of examples; what `collect-logs` brings is scrubbed.
        """
        settings, cid = load(config), secrets.token_hex(8)
        deadline_s = deadline or DEADLINE_S.get(name, USUAL_DEADLINE_S)
        given: dict[str, object] = {"minutes": minutes, "lines": lines}
        if release is not None:
            kept = pick_release(settings, release)
            given |= {"sha256": kept.sha256, "size": kept.size}
        arguments = {key: str(value) for key, value in given.items() if value is not None}
        ask(
            settings,
            "device-command",
            {"device": device, "command": name, "arguments": arguments, "deadline_s": deadline_s, "cid": cid},
        )
        if not wait:
            record = {"cid": cid, "device": device, "command": name, "deadline_s": deadline_s}
            typer.echo(json.dumps(record, indent=2) if as_json else f"asked: {device} {name}, command {cid}")
            return
        with errors.status(f"waiting for {device}") if errors.is_terminal and not as_json else nullcontext():
            ended = _wait_for(settings, cid, deadline_s + GRACE_S)
        _show(ended, as_json)
        if ended.status != "successful":
            raise typer.Exit(1)

    @app.command("commands")
    def commands(
        config: ConfigOption,
        device: Annotated[str | None, typer.Argument(help="One device's; without it all devices'.")] = None,
        as_json: JsonOption = False,
    ) -> None:
        """List commands, the newest first: who was told what, and what came of it. Works while the gateway is down."""
        known = StoreReader(load(config).store_path).commands().values()
        chosen = sorted((c for c in known if device in (None, c.device)), key=lambda c: (-c.asked_ms, c.id))
        if as_json:
            typer.echo(json.dumps([asdict(c) for c in chosen], indent=2))
            return
        table = _table("command", "device", "name", "arguments", "asked", "state", "why")
        for c in chosen:
            said = ", ".join(f"{key} {text}" for key, text in c.arguments.items())
            why = " ".join(word for word in (c.code, c.why) if word)
            table.add_row(c.id, c.device, c.name, said, _ago(c.asked_ms), c.status, why)
        console.print(table if chosen else "No command yet: `broker-aggregator device command DEVICE NAME` gives one.")

    @app.command("configure")
    def configure(
        config: ConfigOption,
        words: Annotated[
            list[str] | None, typer.Argument(metavar="[DEVICE] [KEY=VALUE]", help=f"Keys: {', '.join(ADJUSTABLE)}.")
        ] = None,
        all_devices: Annotated[bool, typer.Option("--all", help="Every device of the fleet, now and later.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Want KEY=VALUE of DEVICE, or of --all; KEY= takes it back. Without settings: what is wanted, and in force.

        What is wanted stands above the device's own file; of one device above what is wanted of all. A device that
        cannot have it keeps the last good configuration and says why.
        """
        settings, given = load(config), list(words or ())
        device = ALL if all_devices else given.pop(0) if given and "=" not in given[0] else ""
        if all_devices and given and "=" not in given[0]:
            raise ConfigError(f"--all and the device {given[0]}", "name one of the two")
        changes = _changes(given)
        if changes and not device:
            raise ConfigError("no device is named", "name one before the settings, or give --all")
        if changes:
            ask(settings, "device-configure", {"device": device, "settings": changes})
        rows = _configurations(StoreReader(settings.store_path), device)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        if changes:
            typer.echo(f"done: configure {'all devices' if device == ALL else device}")
            return
        table = _table("device", "wanted", "revision", "in force", "refused", "why")
        for row in rows:
            in_force, refused = row["reported"] or {}, (row["reported"] or {}).get("refused")
            wanted = ", ".join(f"{key}={text}" for key, text in row["wanted"].items()) or "-"
            revision = str(in_force.get("revision", "-"))
            why = in_force.get("why", "")
            table.add_row(row["device"], wanted, str(row["revision"]), revision, str(refused or ""), why)
        console.print(table if rows else "No device yet, and nothing is wanted of all.")


def _changes(given: Sequence[str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is no KEY=VALUE", "such as gate.min_battery_pct=50; KEY= takes it back")
        changes[key] = text or None
    return changes


def _configurations(store: StoreReader, device: str) -> list[dict[str, Any]]:
    """What is wanted of each device (or of one, or of all) and what it says is in force."""
    configurations, reported = store.configurations(), store.reported()
    ids = [row["id"] for row in store.query("SELECT id FROM device ORDER BY id")]
    if device and device != ALL and device not in ids:
        raise ConfigError(f"there is no device {device}", "`broker-aggregator devices` lists them")
    rows = []
    for name in [ALL] * (ALL in configurations) + ids if not device else [device]:
        own, of_all = configurations.get(name), configurations.get(ALL)
        both = [kept for kept in (of_all, own) if kept is not None]
        said = reported.get(name)
        rows.append(
            {
                "device": "all" if name == ALL else name,
                "wanted": {key: text for kept in both for key, text in kept.settings.items()},
                "revision": max((kept.revision for kept in both), default=0),
                "reported": None if said is None else to_plain(said),
            }
        )
    return rows


def _wait_for(config: GatewayConfig, cid: str, patience_s: float) -> CommandRecord:
    """The command once it is over. Raises `ConfigError` where nobody ends it."""
    store, until = StoreReader(config.store_path), time.monotonic() + patience_s
    try:
        while time.monotonic() < until:
            record = store.commands().get(cid)
            if record is not None and not record.open:
                return record
            time.sleep(LOOK_S)
    finally:
        store.close()
    raise ConfigError(f"nobody has ended the command {cid}", "does the gateway run still? `device commands` lists them")


def _show(record: CommandRecord, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(record), indent=2))
        return
    why = " ".join(word for word in (record.code, record.why) if word)
    typer.echo(f"{record.device} {record.name}: {record.status}{': ' if why else ''}{why}")
    for line in record.lines or ():
        typer.echo(line)
    for key, value in (record.health or {}).items():
        if key not in ("v", "ts") and value not in (None, ""):
            typer.echo(f"{key:<16} {value}")


def _table(*names: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in names))


def _ago(ms: int) -> str:
    return f"{max(0.0, time.time() - ms / 1000):.0f} s ago"
