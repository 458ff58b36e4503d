"""`python -m deploy fleet`: the commands, from their options to what they print."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from anabranch.demo.folder import TASK, VERSIONS
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

from .compose import agents_file
from .engine import Engine
from .looking import fleet_status
from .members import GATEWAY_CONFIG_FILE, TASK_FILE, Members, Wanted
from .profiles import PROFILES
from .specs import GATEWAY

app = typer.Typer(
    help="A virtual fleet on this machine's container engine: broker, gateway, agents with the limits of real boards.",
    no_args_is_help=True,
)
console = Console()
progress = Console(stderr=True)
READY_S = 90.0  # for the gateway to open its store on a busy machine
LOOK_S = 0.5

NameOption = Annotated[str, typer.Option("--name", help="The fleet's name; several may run side by side.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Where its secrets and examples lie; runs/fleet-NAME unless told.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Members: devices, `gateway`, `broker`.")]
AgentsOption = Annotated[int, typer.Option("--agents", help="How many; beyond 17 the fans come again.")]
ProfileOption = Annotated[str, typer.Option("--profile", help=f"The board: {', '.join(PROFILES)}.")]
VersionsOption = Annotated[int, typer.Option("--versions", help="The training ends after so many versions.")]
MinutesOption = Annotated[int, typer.Option("--minutes", help="The training ends after these at the latest.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Draws all training.")]


def _say(text: str) -> None:
    progress.print(text, highlight=False, soft_wrap=True)


def _members(
    name: str, folder: Path | None, agents: int, profile: str, versions: int, minutes: int, seed: int
) -> Members:
    wanted = Wanted(name=name, agents=agents, profile=profile, versions=versions, minutes=minutes, seed=seed)
    members = Members((folder or Path("runs") / f"fleet-{name}").resolve(), wanted)
    members.prepare()
    return members


@app.command()
def up(
    agents: AgentsOption = 17,
    profile: ProfileOption = "pi-4",
    name: NameOption = "fans",
    folder: FolderOption = None,
    versions: VersionsOption = VERSIONS,
    minutes: MinutesOption = 60,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Make the fleet, and start its training. What is there already and as asked for is left alone.

    Each agent learns from the vibration of its own fan, as in `anabranch demo`. Another profile, number of agents or
    image changes the containers and keeps what they have learnt.
    """
    engine = Engine(name, _say)
    done = engine.up(_members(name, folder, agents, profile, versions, minutes, seed).containers())
    created = create_task(engine)
    if as_json:
        typer.echo(json.dumps({"fleet": name, **done, "task": "created" if created else "left"}, indent=2))
    else:
        counts = ", ".join(f"{len(ids)} {what}" for what, ids in done.items() if ids)
        typer.echo(f"fleet {name}: {counts}; task {TASK} {'created' if created else 'left alone'}")


@app.command()
def status(name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """Show each member: state, memory, updates; and how good the model is."""
    found = fleet_status(Engine(name))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    heads = ("id", "state", "health", "memory MB", "peak MB", "limit MB", "cpu s", "updates", "counted", "says")
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for m in found["members"]:
        figures = (m[k] for k in ("memory_mb", "peak_mb", "limit_mb", "cpu_s", "updates", "counted"))
        table.add_row(m["id"], m["state"], m["health"], *("-" if f is None else f"{f:.0f}" for f in figures), m["says"])
    console.print(table)
    for task in found["tasks"]:
        value = "not measured" if task["value"] is None else f"{task['metric']} {task['value']:.4f}"
        console.print(f"{task['task']}: {task['state']}, version {task['version']}, {value}", highlight=False)
    if found["gateway_why"]:
        console.print(f"nothing from the gateway: {found['gateway_why']}", highlight=False)


def _verb(name: str, ids: list[str], as_json: bool, verb: str, act: Callable[[Engine, str], bool]) -> None:
    engine = Engine(name)
    for member in ids:  # all of them or none: a word that is wrong changes nothing
        engine.member(member)
    results = {member: act(engine, member) for member in ids}
    if as_json:
        typer.echo(json.dumps({"fleet": name, "command": verb, "changed": results}, indent=2))
    else:
        for member, changed in results.items():
            typer.echo(f"{member}: {verb if changed else 'nothing to do'}")


@app.command()
def pause(ids: Ids, name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """Freeze members in mid-step: they hold their connection, and say nothing."""
    _verb(name, ids, as_json, "pause", Engine.pause)


@app.command()
def resume(ids: Ids, name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """Thaw members that are paused, and start those that were killed, on their disks."""
    _verb(name, ids, as_json, "resume", Engine.resume)


@app.command()
def kill(ids: Ids, name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """End members as a power cut does (SIGKILL)."""
    _verb(name, ids, as_json, "kill", Engine.kill)


@app.command()
def partition(ids: Ids, name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """Take the network away from members that run on."""
    _verb(name, ids, as_json, "partition", Engine.partition)


@app.command()
def heal(ids: Ids, name: NameOption = "fans", as_json: JsonOption = False) -> None:
    """Give members their network back."""
    _verb(name, ids, as_json, "heal", Engine.heal)


@app.command()
def logs(
    member: Annotated[str, typer.Argument(metavar="ID", help="A device, `gateway` or `broker`.")],
    name: NameOption = "fans",
    tail: Annotated[int, typer.Option("--tail", min=1, help="So many last lines.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
) -> None:
    """Print what a member wrote."""
    for part in Engine(name).logs(member, tail, follow):
        sys.stdout.write(part.decode("utf-8", "replace"))
        sys.stdout.flush()


@app.command()
def down(
    name: NameOption = "fans",
    keep: Annotated[bool, typer.Option("--keep", help="Keep volumes: the next `up` goes on from them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the fleet, by label: also what a crash left behind. Its folder of secrets and examples stays."""
    removed = Engine(name, _say).down(keep)
    if as_json:
        typer.echo(json.dumps({"fleet": name, **removed}, indent=2))
    else:
        typer.echo(f"fleet {name}: removed " + ", ".join(f"{count} {what}" for what, count in removed.items()))


@app.command()
def compose(
    agents: AgentsOption = 3,
    profile: ProfileOption = "pi-4",
    name: NameOption = "fans",
    folder: FolderOption = None,
    versions: VersionsOption = VERSIONS,
    minutes: MinutesOption = 60,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fill the volumes that deploy/compose/compose.yaml mounts, and write the file of its agents."""
    members = _members(name, folder, agents, profile, versions, minutes, seed)
    containers = members.containers()
    Engine(name, _say).fill(containers)
    file = members.folder / "agents.yaml"
    write_durably(file, agents_file(containers).encode())
    if as_json:
        typer.echo(json.dumps({"fleet": name, "file": str(file), "agents": list(members.speeds)}, indent=2))
    else:
        typer.echo(f"docker compose -f deploy/compose/compose.yaml -f {file} up -d")


def create_task(engine: Engine) -> bool:
    """Create and start the task unless the gateway has it; waits for the gateway. Raises `ConfigError`."""
    until = time.monotonic() + READY_S
    config = ["--config", GATEWAY_CONFIG_FILE]
    while True:
        code, out, err = engine.run(GATEWAY, ["broker-aggregator", "status", *config, "--json"])
        if code == 0 and any(task["task"] == TASK for task in _json(out)):
            return False
        if code == 0:
            code, _, err = engine.run(
                GATEWAY, ["broker-aggregator", "task", "--timeout", "30", "create", *config, TASK_FILE]
            )
            if code == 0:
                return True
        if time.monotonic() > until:
            raise ConfigError(f"the gateway does not take the task: {err.strip()}", "see `fleet logs gateway`")
        time.sleep(LOOK_S)  # nothing tells us when its store is open


def _json(text: str) -> Any:
    return json.loads(text)
