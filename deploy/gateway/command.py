"""`python -m deploy gateway`: options, what they print, and the order of things."""

import datetime as dt
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from fl_protocol.errors import ConfigError

from .certificates import make_certificates, ownership
from .plan import Accounts, Plan
from .standing import load_plan, look, take_down
from .system import has_systemd, run
from .up import Outcome, bring_up
from .writing import apply

app = typer.Typer(help="Set up the gateway's machine: certificates, broker, services.", no_args_is_help=True)
console = Console()
progress = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RootOption = Annotated[Path, typer.Option(help="A folder in place of /, for an image or a test.")]


@app.command()
def up(
    fleet: Annotated[str, typer.Option(help="The fleet's name: 1 to 64 of a-z, 0-9 and -.")],
    name: Annotated[
        list[str],
        typer.Option(help="Host name or address under which devices reach this machine; the first goes into tickets."),
    ],
    how: Annotated[Literal["systemd", "compose"], typer.Option(help="What runs the brokers and the gateway.")] = (
        "systemd"
    ),
    root: RootOption = Path("/"),
    port: Annotated[int, typer.Option(help="Devices, with their certificates.")] = 8883,
    enroll_port: Annotated[int, typer.Option(help="Devices that hold a ticket and no certificate yet.")] = 8884,
    services_port: Annotated[int, typer.Option(help="The gateway itself, operators and monitors.")] = 8885,
    services_address: Annotated[
        str,
        typer.Option(
            help="Where --services-port listens. Who holds a device's certificate and reaches it can end sessions."
        ),
    ] = "127.0.0.1",
    autosave: Annotated[
        int, typer.Option(min=1, max=3600, help="Seconds between two writes of the broker's disk: what a crash costs.")
    ] = 30,
    memory: Annotated[int, typer.Option(min=32, help="Megabytes that the broker's messages may take.")] = 512,
    broker_user: Annotated[str, typer.Option(help="The account that runs the brokers.")] = "",
    gateway_user: Annotated[str, typer.Option(help="The account that runs the gateway; it is made.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a fleet's gateway. Run again it changes nothing; with another --name only one certificate.

    As root with systemd running it enables and starts the services; otherwise it says what to run.
    """
    plan = Plan(
        fleet=fleet,
        names=tuple(dict.fromkeys(name)),
        how=how,
        root=root.resolve(),
        port=port,
        enroll_port=enroll_port,
        services_port=services_port,
        services_address=services_address,
        accounts=_accounts(root, how, broker_user, gateway_user),
        autosave_s=autosave,
        memory_mb=memory,
    )
    with progress.status("checking") as status:
        outcome = bring_up(plan, dt.datetime.now(dt.UTC), status.update, dry_run=dry_run)
    _print_outcome(plan, outcome, dry_run, as_json)


def _accounts(root: Path, how: str, broker: str, gateway: str) -> Accounts:
    """In a folder everything is whoever's who runs this, unless the options say else."""
    if root.resolve() != Path("/"):
        usual = Accounts.myself()
    else:
        usual = Accounts(broker="anabranch-broker" if how == "compose" else "mosquitto")
    return Accounts(broker=broker or usual.broker, gateway=gateway or usual.gateway)


def _print_outcome(plan: Plan, outcome: Outcome, dry_run: bool, as_json: bool) -> None:
    if as_json:
        changes = [{"path": str(change.path), "what": change.what} for change in outcome.changes]
        fields = {"fleet": plan.fleet, "dry_run": dry_run, "changes": changes}
        typer.echo(json.dumps({**fields, "started": outcome.started, "to_run": outcome.to_run}, indent=2))
        return
    for change in outcome.changes:
        typer.echo(f"{'would be ' if dry_run else ''}{change.what}: {change.path}")
    if not outcome.changes:
        typer.echo("nothing to change: everything is as it should be")
    if outcome.started:
        typer.echo(f"the gateway of {plan.fleet} runs: `python -m deploy gateway status`")
    elif outcome.to_run:
        typer.echo("nothing was started here; run\n" + "\n".join(f"  {line}" for line in outcome.to_run))


@app.command()
def status(root: RootOption = Path("/"), as_json: JsonOption = False) -> None:
    """Say what is set up and what answers: services, listeners, certificates. Ends with 1 where something is wrong."""
    plan = load_plan(root.resolve())
    findings = look(plan, dt.datetime.now(dt.UTC))
    if as_json:
        typer.echo(json.dumps({"fleet": plan.fleet, "findings": [vars(f) for f in findings]}, indent=2))
    else:
        table = Table("what", "", "")
        for finding in findings:
            table.add_row(finding.what, "[green]ok[/]" if finding.good else "[red]wrong[/]", finding.words)
        console.print(table)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@app.command()
def down(root: RootOption = Path("/"), as_json: JsonOption = False) -> None:
    """Stop the brokers and the gateway, and start them no more at boot. Every file stays."""
    plan = load_plan(root.resolve())
    to_run = take_down(plan)
    if as_json:
        typer.echo(json.dumps({"fleet": plan.fleet, "stopped": not to_run, "to_run": to_run}, indent=2))
    elif to_run:
        typer.echo("nothing was stopped here; run\n" + "\n".join(f"  {line}" for line in to_run))
    else:
        typer.echo(f"the gateway of {plan.fleet} is down; keys and models stay in {plan.data}")


@app.command()
def renew(root: RootOption = Path("/"), as_json: JsonOption = False) -> None:
    """Make the certificates again that are past two thirds of their life. The timer `anabranch-renew` does so."""
    plan = load_plan(root.resolve())
    if plan.installed and os.geteuid() != 0:
        raise ConfigError("only root can renew certificates", "`sudo`")
    made = make_certificates(plan, dt.datetime.now(dt.UTC))
    apply(ownership(plan.pki, plan.accounts if plan.installed else None))
    if plan.installed and has_systemd() and any(name.startswith("services/") for name in made):
        run(["systemctl", "--no-block", "try-restart", "anabranch-gateway.service", "anabranch-enrollment.service"])
    if as_json:
        typer.echo(json.dumps({"fleet": plan.fleet, "made": made}, indent=2))
    else:
        typer.echo(f"made again: {', '.join(made)}" if made else "no certificate is due")
