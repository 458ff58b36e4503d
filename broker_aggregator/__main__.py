"""`broker-aggregator`: run the gateway, ask it things, read its store, take the model home."""

import fcntl
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from broker_aggregator.asking import ANSWER_S, ask_gateway
from broker_aggregator.config import GatewayConfig, load_config, load_task
from broker_aggregator.device_cli import add_device_commands
from broker_aggregator.keyring import Keyring
from broker_aggregator.objects import Objects, add_bundle
from broker_aggregator.quarantined import export_deltas, quarantined
from broker_aggregator.reading import devices as read_devices
from broker_aggregator.reading import replay as replay_releases
from broker_aggregator.reading import status as read_status
from broker_aggregator.release_cli import make_release_app, make_rollout_app
from broker_aggregator.store import SqliteStore
from broker_aggregator.store_reader import StoreReader
from broker_aggregator.tickets import write_tickets
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.keyfile import load_or_create_key

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
task_app = typer.Typer(help="Create, change, start, pause, stop and delete learning jobs.", no_args_is_help=True)
device_app = typer.Typer(help="Let devices in, by their public key, and send them away.", no_args_is_help=True)
app.add_typer(task_app, name="task")
app.add_typer(device_app, name="device")
console = Console()


@dataclass
class _Patience:
    """What the options before a subcommand said."""

    timeout: float = ANSWER_S


patience = _Patience()


@task_app.callback()
@device_app.callback()
def ask_with(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the gateway's answer.")] = ANSWER_S,
) -> None:
    """Ask the running gateway; the command is signed with the fleet's key, which lies in its data_dir."""
    patience.timeout = timeout


ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The gateway's TOML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def _load(path: Path) -> GatewayConfig:
    return load_config(path, os.environ)


def _table(*names: str) -> Table:
    """A narrow terminal breaks a word, but hides none."""
    return Table(*(Column(name, overflow="fold") for name in names))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


@contextmanager
def _only_one(config: GatewayConfig) -> Iterator[None]:
    """Two gateways on one store would count an update twice."""
    config.gateway.data_dir.mkdir(parents=True, exist_ok=True)
    with (config.gateway.data_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another gateway runs on {config.gateway.data_dir}", "stop it, or give this one its own data_dir"
            ) from None
        yield


@app.command()
def run(config: ConfigOption) -> None:
    """Serve the fleet until SIGTERM or Ctrl-C."""
    from broker_aggregator.service import Service  # onnxruntime only where it is needed

    settings = _load(config)
    logging.basicConfig(
        level=settings.gateway.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with _only_one(settings):
        store = SqliteStore(settings.store_path, keep_releases=settings.gateway.keep_releases)
        try:
            Service(settings, store, Keyring.load(settings.key_path)).run(stopping)
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"the store {settings.store_path} cannot be written: {error}",
                "free space on its disk; what was accepted is safe, and a restart goes on from it",
            ) from None
        finally:
            store.close()


@app.command()
def identity(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Print the fleet's name and public key, which goes into every agent's configuration."""
    settings = _load(config)
    key = load_or_create_key(settings.key_path)
    if as_json:
        _print_json({"fleet": settings.gateway.fleet, "public_key": key.public})
    else:
        typer.echo(f"fleet       {settings.gateway.fleet}\npublic_key  {key.public}")


@app.command(name="rotate-key")
def rotate_key(
    config: ConfigOption,
    void_tickets: Annotated[
        bool, typer.Option("--void-tickets", help="Tickets that are out are worth nothing: the old key was stolen.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the gateway's answer.")] = ANSWER_S,
    as_json: JsonOption = False,
) -> None:
    """Let the running gateway make the fleet's next signing key; the old one signs for it, and is gone.

    Devices follow when they hear of it, also those that come back later: a chain of 16 rotations is kept for them.
    Their software must know rotations; make a backup afterwards, since an older one holds the old key.
    """
    settings, why = _load(config), None
    before = load_or_create_key(settings.key_path).public
    try:
        answer = ask_gateway(settings, "rotate-key", {"void": void_tickets}, timeout)
        if answer.status == "failed":
            raise ConfigError(answer.message, answer.hint)
    except ConfigError as error:
        why = error  # it may have fallen after it did so: what its disk says is true
    after = load_or_create_key(settings.key_path).public
    if after == before:
        raise why or ConfigError(
            "the gateway fell before it had a new key", "`broker-aggregator identity` shows it; run `rotate-key` again"
        )
    if as_json:
        _print_json({"fleet": settings.gateway.fleet, "public_key": after, "before": before})
    else:
        typer.echo(f"the fleet's key is {after}\nmake a backup now: `python -m deploy backup`")


@app.command()
def status(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show each task: version, metric, what became of the updates. Reads the store; works while the gateway is down."""
    store = StoreReader(_load(config).store_path)
    tasks = read_status(store)
    if as_json:
        _print_json(tasks)
        return
    table = _table("task", "state", "version", "metric", "best", "updates", "staleness", "bytes up", "float32", "why")
    for t in tasks:
        table.add_row(
            t["task"],
            t["state"],
            str(t["version"]),
            "-" if t["value"] is None else f"{t['metric']} {t['value']:.4f}",
            "-" if t["best"] is None else f"{t['best']:.4f}",
            ", ".join(f"{n} {v}" for v, n in t["updates"].items()) or "-",
            "-" if t["staleness"] is None else f"{t['staleness']:.2f}",
            f"{t['bytes_up']:,}",
            "-" if t["ratio_up"] is None else f"{t['ratio_up']:.1f} times",
            t["why"],
        )
    console.print(table if tasks else "No task yet: `broker-aggregator task create --config FILE TASK.toml` makes one.")


@app.command()
def devices(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show each device: what it last said, and what became of its updates."""
    store = StoreReader(_load(config).store_path)
    rows = read_devices(store)
    if as_json:
        _print_json(rows)
        return
    table = _table("device", "state", "seen", "agent", "updates", "accepted", "counted", "staleness", "bytes up")
    now = time.time()
    for row in rows:
        state = "revoked" if row["revoked"] else (row["state"] or {}).get("state", "never seen")
        seen = "-" if row["seen_ts"] is None else f"{now - row['seen_ts'] / 1000:.0f} s ago"
        staleness = "-" if row["staleness"] is None else f"{row['staleness']:.2f}"
        numbers = [str(row[k]) for k in ("updates", "accepted", "counted")]
        table.add_row(row["id"], state, seen, _agent(row["info"] or {}), *numbers, staleness, f"{row['bytes_up']:,}")
    console.print(
        table if rows else "No device yet: `broker-aggregator device allow --config FILE ID KEY` lets one in."
    )


def _agent(info: dict[str, Any]) -> str:
    """The agent's version, and the release that brought it."""
    version = str(info.get("software", "-")).removeprefix("edge-agent ")
    return f"{version}, release {info['release']}" if info.get("release") else version


@app.command()
def replay(task: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Make every kept release again from its updates and compare bit for bit; exit 1 where one differs."""
    store = StoreReader(_load(config).store_path)
    store.release(task)
    results = list(replay_releases(store, task))
    wrong = [r.version for r in results if not r.same]
    if as_json:
        _print_json(
            {"task": task, "releases": len(results), "updates": sum(r.updates for r in results), "differ": wrong}
        )
    else:
        typer.echo(
            f"{len(results)} releases of {sum(r.updates for r in results)} updates made again; differ: {wrong or 0}"
        )
    if wrong:
        raise typer.Exit(1)


@app.command()
def quarantine(
    config: ConfigOption,
    task: Annotated[str | None, typer.Argument(help="One task's; without it all tasks'.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write TASK's deltas, decoded, to this .npz.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the accepted updates that no version counts: whose, when, trained from what, how large, and why."""
    store = StoreReader(_load(config).store_path)
    rows = quarantined(store, task)
    if export is not None:
        if task is None:
            raise ConfigError("--export without a TASK", "models differ: name the task whose deltas you want")
        written = export_deltas(store, task, export)
        if not as_json:
            typer.echo(f"{written} of {len(rows)} deltas in {export}; the others' bytes are no longer kept")
            return
    if as_json:
        _print_json(rows)
        return
    table = _table("task", "device", "seq", "when", "base", "version", "norm", "why")
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["ts"] / 1000))
        version = "-" if row["version"] is None else str(row["version"])
        numbers = (str(row["base_version"]), version, f"{row['norm']:.4g}")
        table.add_row(row["task"], row["device"], str(row["seq"]), when, *numbers, row["why"])
    console.print(table if rows else "Nothing is quarantined.")


@app.command()
def export(
    task: str,
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write int8.onnx, float.onnx, model.json.")],
    version: Annotated[int | None, typer.Option(help="Which version; the newest unless told.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as an int8 ONNX model and a float one; both run in a stock onnxruntime."""
    from broker_aggregator.export import export_version

    settings = _load(config)
    store = StoreReader(settings.store_path)
    release = store.release(task, version)
    plan = store.plan(task, release.plan_revision)
    bundle = Objects(settings.bundles, store).bundle(plan.bundle_sha256)
    if bundle is None:
        raise ConfigError(f"bundle {plan.bundle_sha256} is not in {settings.bundles}", "copy it there from a backup")
    row = store.query("SELECT value FROM release WHERE task = ? AND version = ?", task, release.version)[0]
    files = export_version(bundle, release, row["value"], output)
    if as_json:
        _print_json({"task": task, "version": release.version, **{k: str(v) for k, v in files.items()}})
    else:
        typer.echo(f"version {release.version} of {task}: {', '.join(str(p) for p in files.values())}")


def _ask(config: Path, name: str, arguments: dict[str, object], as_json: bool) -> None:
    answer = ask_gateway(_load(config), name, arguments, patience.timeout)
    if answer.status == "failed":
        raise ConfigError(answer.message, answer.hint)
    more = answer.message if answer.message != name else ""
    if as_json:
        _print_json({"status": answer.status, "command": name, **arguments, **({"message": more} if more else {})})
    else:
        what = f"{name.replace('-', ' ')} {arguments.get('task', arguments.get('device', ''))}"
        typer.echo(f"done: {what}{': ' if more else ''}{more}")


def _task_arguments(config: Path, file: Path) -> tuple[dict[str, object], bool]:
    task = load_task(file)
    bundle = add_bundle(_load(config).bundles, task.bundle)
    if task.evaluation and not task.evaluation.is_file():
        raise ConfigError(f"{file}: evaluation: there is no file {task.evaluation}", "name an .npz with x and y")
    arguments: dict[str, object] = {
        "task": task.task,
        "bundle_sha256": bundle.sha256,
        "bundle_size": task.bundle.stat().st_size,
        "evaluation": str(task.evaluation or ""),
        "plan": task.plan,
    }
    return arguments, task.start


TaskFile = Annotated[Path, typer.Argument(help="A task file: task, bundle, evaluation, [plan].")]


@task_app.command("create")
def task_create(file: TaskFile, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Create the task that FILE describes, and start it where it says `start = true`."""
    arguments, start = _task_arguments(config, file)
    _ask(config, "task-create", arguments, as_json)
    if start:
        _ask(config, "task-start", {"task": arguments["task"]}, as_json)


@task_app.command("change")
def task_change(file: TaskFile, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Give a task the plan that FILE describes, as a new revision; another model starts from its first parameters."""
    arguments, _ = _task_arguments(config, file)
    _ask(config, "task-change", arguments, as_json)


@task_app.command("start")
def task_start(task: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Run a task that is new, paused, stopped or finished."""
    _ask(config, "task-start", {"task": task}, as_json)


@task_app.command("pause")
def task_pause(task: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Hold a task; what was accepted waits in its buffer."""
    _ask(config, "task-pause", {"task": task}, as_json)


@task_app.command("stop")
def task_stop(task: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """End a task; its last version stays published."""
    _ask(config, "task-stop", {"task": task}, as_json)


@task_app.command("rollback")
def task_rollback(
    task: str,
    config: ConfigOption,
    to: Annotated[int | None, typer.Option(help="Which version; the best measured one unless told.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish an earlier version's parameters as a new version; what was trained from later ones is stale."""
    _ask(config, "task-rollback", {"task": task} if to is None else {"task": task, "to": to}, as_json)


@task_app.command("delete")
def task_delete(task: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Forget a task; no retained topic of it stays behind."""
    _ask(config, "task-delete", {"task": task}, as_json)


@device_app.command("allow")
def device_allow(device: str, public_key: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Let DEVICE take part; `edge-agent identity` on the device prints its PUBLIC_KEY."""
    _ask(config, "device-allow", {"device": device, "public_key": public_key}, as_json)


@device_app.command("revoke")
def device_revoke(device: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Listen to DEVICE no longer; its certificates are void within seconds, and its connection ends."""
    _ask(config, "device-revoke", {"device": device}, as_json)


@device_app.command("ticket")
def device_ticket(
    devices: Annotated[list[str], typer.Argument(help="Ids of new devices: one ticket each.")],
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tickets, DEVICE.toml each.")],
    hours: Annotated[int, typer.Option(help="How long a ticket is good for.", min=1)] = 72,
    hardware: Annotated[str, typer.Option(help="The one machine that may use it, by its serial number.")] = "",
    again: Annotated[bool, typer.Option("--again", help="A device that is there already was flashed anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a ticket for each of DEVICES, for `python -m deploy flash`. It lets one device in, once."""
    written = write_tickets(
        _load(config), devices, output, hours=hours, hardware=hardware, again=again, timeout=patience.timeout
    )
    if as_json:
        _print_json(written)
        return
    for row in written:
        typer.echo(f"{row['ticket']}: {row['device']}, claim {row['claim']}, good for {hours} h")
    typer.echo("Flash one onto each card: python -m deploy flash IMAGE --ticket FILE")


@device_app.command("tickets")
def device_tickets(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List the tickets that are out: who waits for approval, and who was refused."""
    claims = StoreReader(_load(config).store_path).claims().values()
    if as_json:
        _print_json([{k: v for k, v in asdict(claim).items() if k != "secret"} for claim in claims])
        return
    table = _table("claim", "device", "good until", "state", "key", "machine", "refused", "why")
    for c in claims:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(c.expires_ms / 1000))
        expired = time.time() * 1000 > c.expires_ms
        state = "approved" if c.approved else "asked" if c.key else "expired" if expired else "open"
        table.add_row(c.id, c.device, until, state, c.key[:16], c.machine, str(c.refused), c.why)
    console.print(table if claims else "No ticket is out: `broker-aggregator device ticket` makes one.")


@device_app.command("approve")
def device_approve(claim: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Let the device in that waits by CLAIM; `device tickets` shows who does."""
    _ask(config, "device-approve", {"claim": claim}, as_json)


@device_app.command("withdraw")
def device_withdraw(claim: str, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Make the ticket of CLAIM worthless."""
    _ask(config, "device-withdraw", {"claim": claim}, as_json)


app.add_typer(make_release_app(_load), name="release")
app.add_typer(make_rollout_app(_load), name="rollout")
add_device_commands(device_app, _load, lambda: patience.timeout)


def _fail(error: Exception) -> NoReturn:
    message = error.message if isinstance(error, ConfigError | ProtocolError) else str(error)
    hint = getattr(error, "hint", "")
    typer.echo(f"broker-aggregator: {message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
    sys.exit(2)


def main() -> None:
    """The command, with errors as one sentence and a hint."""
    try:
        app()
    except (ConfigError, ProtocolError) as error:
        _fail(error)


if __name__ == "__main__":
    main()
