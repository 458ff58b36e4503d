"""`broker-aggregator release` and `rollout`: the agent's next version, on the gateway's shelf and on its way."""

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from broker_aggregator.agent_releases import add_release, find_release, kept_releases
from broker_aggregator.asking import ANSWER_S, ask_gateway
from broker_aggregator.config import GatewayConfig
from broker_aggregator.rollout import Attempt, KeptRelease, Rollout, count
from broker_aggregator.rollout_operations import MAX_NAMED, ROLLOUT_START
from broker_aggregator.store_reader import StoreReader
from fl_protocol.errors import ConfigError
from fl_protocol.keyfile import load_or_create_key

console = Console()
_RATE = re.compile(r"([0-9]{1,6})/(minute|hour|day)")
_PER_HOUR = {"minute": 60.0, "hour": 1.0, "day": 1 / 24}
_SPAN = re.compile(r"([0-9]{1,7})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The gateway's TOML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for the gateway's answer.")]
RolloutArgument = Annotated[str | None, typer.Argument(help="Its id; without it the newest.")]
Load = Callable[[Path], GatewayConfig]


def pick_release(config: GatewayConfig, word: str) -> KeptRelease:
    """The release that a person means, of those on the shelf. Raises `ConfigError`."""
    return find_release(config.agent_releases, word, *_key_and_fleet(config))


def _key_and_fleet(config: GatewayConfig) -> tuple[str, str]:
    """By which releases are checked."""
    return load_or_create_key(config.key_path).public, config.gateway.fleet


def make_release_app(load: Load) -> typer.Typer:
    """`release add`, `list` and `remove`; `load` reads a configuration."""
    app = typer.Typer(help="Keep releases of the agent, which devices fetch by a roll-out.", no_args_is_help=True)

    @app.command("add")
    def add(
        file: Annotated[Path, typer.Argument(help="What `python -m deploy release make` made.")],
        config: ConfigOption,
        as_json: JsonOption = False,
    ) -> None:
        """Check FILE by the fleet's key and keep it beside the store. No device is told of it yet."""
        settings = load(config)
        kept = add_release(settings.agent_releases, file, *_key_and_fleet(settings))
        if as_json:
            typer.echo(json.dumps(asdict(kept), indent=2))
            return
        typer.echo(f"kept: {_say(kept)}, {kept.size / 1e6:.1f} MB, sha256 {kept.sha256}")
        typer.echo(f"next: broker-aggregator rollout start {kept.number} --config {config}")

    @app.command("list")
    def list_(config: ConfigOption, as_json: JsonOption = False) -> None:
        """List the releases that are kept, the newest first. Each is read and checked."""
        settings = load(config)
        sound, damaged = kept_releases(settings.agent_releases, *_key_and_fleet(settings))
        if as_json:
            typer.echo(json.dumps({"releases": [asdict(kept) for kept in sound], "damaged": damaged}, indent=2))
            return
        table = _table("number", "version", "for", "python", "MB", "sha256")
        for kept in sound:
            table.add_row(
                str(kept.number), kept.version, kept.arch, kept.python, f"{kept.size / 1e6:.1f}", kept.sha256[:16]
            )
        console.print(table if sound else "No release is kept: `broker-aggregator release add FILE` keeps one.")
        for sha256, why in damaged.items():
            typer.echo(f"{sha256[:16]}: {why}", err=True)

    @app.command("remove")
    def remove(
        release: Annotated[str, typer.Argument(help="Number, version, or the beginning of the SHA-256.")],
        config: ConfigOption,
        as_json: JsonOption = False,
    ) -> None:
        """Keep a release no longer; one that a roll-out is at stays. Devices that have it are not touched."""
        settings = load(config)
        try:
            sha256 = pick_release(settings, release).sha256
        except ConfigError:
            damaged = settings.agent_releases / release  # by its whole SHA-256
            if not re.fullmatch("[0-9a-f]{64}", release) or not damaged.is_file():
                raise
            sha256 = release
        if settings.store_path.exists():
            for rollout in StoreReader(settings.store_path).rollouts().values():
                if rollout.open and rollout.release.sha256 == sha256:
                    raise ConfigError(f"the roll-out {rollout.id} is at it", "`rollout stop` that first, or let it end")
        (settings.agent_releases / sha256).unlink()
        typer.echo(json.dumps({"removed": sha256}, indent=2) if as_json else f"removed: {sha256}")

    return app


def make_rollout_app(load: Load) -> typer.Typer:
    """`rollout start`, `status`, `pause`, `resume` and `stop`; `load` reads a configuration."""
    app = typer.Typer(help="Bring a release to devices, wave by wave; it stops by itself.", no_args_is_help=True)

    def ask(config: Path, name: str, arguments: dict[str, object], timeout: float, as_json: bool) -> None:
        answer = ask_gateway(load(config), name, arguments, timeout)
        if answer.status == "failed":
            raise ConfigError(answer.message, answer.hint)
        said = answer.message if answer.message != name else ""
        if as_json:
            typer.echo(json.dumps({"status": answer.status, "message": said, **arguments}, indent=2))
        else:
            typer.echo(f"done: {name.replace('-', ' ')} {arguments['rollout']}{': ' if said else ''}{said}")

    def newest(config: Path, rollout: str | None) -> str:
        if rollout is not None:
            return rollout
        known = StoreReader(load(config).store_path).rollouts().values()
        if not known:
            raise ConfigError("there was no roll-out yet", "`rollout start RELEASE` begins one")
        return max(known, key=lambda r: r.started_ms).id

    @app.command("start")
    def start(
        release: Annotated[str, typer.Argument(help="Number, version, or the beginning of the SHA-256.")],
        config: ConfigOption,
        groups: Annotated[
            str, typer.Option(help="Waves: how many devices have it when each ends, or per cent of all.")
        ] = "1,10%,100%",
        rate: Annotated[str, typer.Option(help="Devices asked per minute, hour or day, or `all` at once.")] = "60/hour",
        stop_at: Annotated[str, typer.Option(help="It stops when more of a wave than this have failed.")] = "10%",
        deadline: Annotated[str, typer.Option(help="What a device is given, as 30m, 6h or 7d.")] = "24h",
        devices: Annotated[
            str | None,
            typer.Option(help="Only these (150 at most), in this order, commas between; else all that it fits."),
        ] = None,
        timeout: TimeoutOption = ANSWER_S,
        as_json: JsonOption = False,
    ) -> None:
        """Have the running gateway bring RELEASE to devices.

        A wave is the devices that are added to those of the wave before. The next one begins when all of a wave have
        ended, not more than --stop-at of them failed, and at least one has it. A device fetches the release, tries it,
        and goes back by itself where it does not work: that is a failure here. A device that is off waits; one that
        did not answer until its --deadline is skipped. Devices that are there come first, otherwise in random order.
        """
        kept, id_ = pick_release(load(config), release), secrets.token_hex(4)
        arguments: dict[str, object] = {
            "rollout": id_,
            "sha256": kept.sha256,
            "groups": [word.strip() for word in groups.split(",")],
            "per_hour": per_hour(rate),
            "stop_at": stop_at.removesuffix("%"),
            "deadline_s": seconds(deadline),
        }
        if devices is not None:
            named = [word.strip() for word in devices.split(",") if word.strip()]
            if len(named) > MAX_NAMED:
                raise ConfigError(
                    f"--devices: {len(named)} of them", f"name {MAX_NAMED} at most, or leave it out for all"
                )
            arguments["devices"] = named
        ask(config, ROLLOUT_START, arguments, timeout, as_json)

    @app.command("status")
    def status(config: ConfigOption, rollout: RolloutArgument = None, as_json: JsonOption = False) -> None:
        """Show a roll-out: each wave, and each device that failed; --json has all devices.

        Works while the gateway is down. Ends with 1 where the roll-out has stopped.
        """
        store, id_ = StoreReader(load(config).store_path), newest(config, rollout)
        known = store.rollouts().get(id_)
        if known is None:
            raise ConfigError(f"there is no roll-out {id_}", f"here are: {', '.join(store.rollouts()) or 'none'}")
        attempts = store.attempts(id_)
        if as_json:
            typer.echo(json.dumps(_facts(known, attempts), indent=2))
        else:
            _print(known, attempts)
        if known.state == "stopped":
            raise typer.Exit(1)

    @app.command("list")
    def list_(config: ConfigOption, as_json: JsonOption = False) -> None:
        """List the roll-outs, the newest first; the last 20 that are over are kept."""
        store = StoreReader(load(config).store_path)
        known = sorted(store.rollouts().values(), key=lambda r: -r.started_ms)
        if as_json:
            typer.echo(json.dumps([asdict(r) for r in known], indent=2))
            return
        table = _table("roll-out", "release", "state", "wave", "devices", "started", "why")
        for r in known:
            said = ", ".join(f"{number} {state}" for state, number in count(store.attempts(r.id)).items())
            table.add_row(r.id, _say(r.release), r.state, f"{r.wave + 1}/{r.waves}", said, _ago(r.started_ms), r.why)
        console.print(table if known else "No roll-out yet: `broker-aggregator rollout start RELEASE` begins one.")

    for word, what in (
        ("pause", "Ask no more devices, until `resume`; those that were asked go on."),
        ("resume", "Go on with a paused roll-out."),
        ("stop", "Ask no more devices, for good; who has not begun never will, who has begun goes on."),
    ):
        _add(app, word, what, newest, ask)
    return app


def _add(
    app: typer.Typer,
    word: str,
    what: str,
    newest: Callable[[Path, str | None], str],
    ask: Callable[[Path, str, dict[str, object], float, bool], None],
) -> None:
    @app.command(word, help=what)
    def command(
        config: ConfigOption,
        rollout: RolloutArgument = None,
        timeout: TimeoutOption = ANSWER_S,
        as_json: JsonOption = False,
    ) -> None:
        ask(config, f"rollout-{word}", {"rollout": newest(config, rollout)}, timeout, as_json)


def per_hour(text: str) -> int:
    """Devices an hour of `60/hour`, `1/minute`, `100/day`; 0 for `all`. Raises `ConfigError`."""
    if text == "all":
        return 0
    match = _RATE.fullmatch(text)
    value = round(int(match[1]) * _PER_HOUR[match[2]]) if match else 0
    if value < 1:
        raise ConfigError(
            f"--rate {text!r:.40}", "such as 60/hour, 10/minute or 500/day, one an hour at least; or `all`"
        )
    return value


def seconds(text: str) -> int:
    """Seconds of `90s`, `30m`, `6h`, `7d`. Raises `ConfigError`."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ConfigError(f"--deadline {text!r:.40}", "a number and s, m, h or d, such as 6h")
    return int(match[1]) * _SECONDS[match[2]]


def _facts(rollout: Rollout, attempts: dict[str, Attempt]) -> dict[str, Any]:
    ordered = sorted(attempts.values(), key=lambda a: a.place)
    return {
        **asdict(rollout),
        "counts": count(attempts),
        "wave_counts": [count(attempts, wave) for wave in range(rollout.waves)],
        "devices": [{**asdict(a), "command": a.command} for a in ordered],
    }


def _print(rollout: Rollout, attempts: dict[str, Attempt]) -> None:
    rate = f"{rollout.per_hour} an hour" if rollout.per_hour else "all at once"
    typer.echo(
        f"roll-out {rollout.id}: {rollout.state}{': ' if rollout.why else ''}{rollout.why}\n"
        f"{_say(rollout.release)}; {rate}, stops above {rollout.stop_at} %, begun {_ago(rollout.started_ms)}"
    )
    states = ("waiting", "asked", "executing", "successful", "failed", "skipped")
    table = _table("wave", "devices", *states)
    for wave in range(rollout.waves):
        counts = count(attempts, wave)
        here = " <" if wave == rollout.wave and rollout.open else ""
        table.add_row(f"{wave + 1}{here}", str(sum(counts.values())), *(str(counts.get(s, "")) for s in states))
    console.print(table)
    told = [
        a for a in sorted(attempts.values(), key=lambda a: a.place) if a.state in ("failed", "skipped") and a.asked_ms
    ]
    for attempt in told[:50]:
        typer.echo(f"{attempt.device}: {attempt.state}: {attempt.why}")
    if len(told) > 50:
        typer.echo(f"and {len(told) - 50} more: --json")
    for why, number in sorted(rollout.left_out.items()):
        typer.echo(f"left out: {number} devices, {why}")


def _say(release: KeptRelease) -> str:
    return f"release {release.number} ({release.version}, {release.arch}, Python {release.python})"


def _table(*names: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in names))


def _ago(ms: int) -> str:
    return f"{max(0.0, time.time() - ms / 1000):.0f} s ago"
