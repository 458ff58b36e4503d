"""`python -m models new | build | gates | list | data`: the workshop's commands."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError, ProtocolError
from models.build import build as build_bundle
from models.data import fetch_data
from models.gates import Gate, run_gates
from models.new import write_model
from models.spec import ModelSpec, catalog, load

_REMEDIES = "docs/bring-your-own-model.md says under Build what each gate means, and what to change"
SHIPPED = Path(__file__).parents[1] / "anabranch" / "data"

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Compile torch models into bundles.")
console = Console()
progress = Console(stderr=True)
app.command("data")(fetch_data)

Name = Annotated[str, typer.Argument(help="a model of the catalog")]
BundleFile = Annotated[Path | None, typer.Option(help="default: anabranch/data/NAME.bundle")]
AsJson = Annotated[bool, typer.Option("--json", help="for a script")]


@app.command()
def new(name: Annotated[str, typer.Argument(help="a Python identifier in lower case")]) -> None:
    """Write a small model that works, to be made into your own: models/NAME/."""
    for file in write_model(name, Path(__file__).parent):
        console.print(f"{file}")
    console.print(f"next: python -m models build {name} --out {name}.bundle", style="bold")


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Name every model of the catalog."""
    specs = [load(name) for name in catalog()]
    if as_json:
        rows = [
            {
                "name": s.name,
                "description": s.description,
                "licence": s.licence,
                "labels": s.labels,
                "metric": s.metric.name,
            }
            for s in specs
        ]
        return _print_json(rows)
    for spec in specs:
        console.print(f"{spec.name}  {spec.description}")
    return None


@app.command()
def build(name: Name, out: BundleFile = None) -> None:
    """Compile a model, hold it against every gate, and only then write its bundle."""
    spec = load(name)
    with progress.status(f"compiling {name}"):
        data = build_bundle(spec)
    try:
        bundle = Bundle.read(data)
    except ProtocolError as error:  # what devices would say of it
        raise ConfigError(
            f"{name} makes a bundle that no device takes: {error}", "make the model smaller or simpler"
        ) from error
    results = _measure(bundle, spec)
    console.print(_table(results))
    _demand(results, f"nothing was written; {_REMEDIES}")
    out = out or SHIPPED / f"{name}.bundle"
    write_durably(out, data)
    sent = f"{bundle.layout.num_parameters:,} parameters and {bundle.layout.num_statistics} statistics are sent"
    kept = f", {bundle.personal.size:,} personal values stay on each device" if bundle.personal.size else ""
    console.print(f"wrote {out}  {len(data):,} bytes\n{sent}{kept}\nsha256 {bundle.sha256}")


@app.command()
def gates(name: Name, bundle: BundleFile = None, as_json: AsJson = False) -> None:
    """Hold a bundle that is already built against every gate."""
    path = bundle or SHIPPED / f"{name}.bundle"
    if not path.is_file():
        raise ConfigError(f"there is no {path}", f"python -m models build {name} makes it")
    results = _measure(Bundle.read(path.read_bytes()), load(name))
    if as_json:
        _print_json([asdict(gate) for gate in results])
    else:
        console.print(_table(results))
    _demand(results, _REMEDIES)


def _measure(bundle: Bundle, spec: ModelSpec) -> list[Gate]:
    with progress.status(f"{spec.name}: gates") as status:
        return run_gates(bundle, spec, lambda what: status.update(f"{spec.name}: {what}"))


def _table(results: list[Gate]) -> Table:
    table = Table("gate", "measured", "allowed", "")
    for gate in results:
        table.add_row(gate.name, gate.measured, gate.allowed, "passed" if gate.passed else "[red]FAILED")
    return table


def _demand(results: list[Gate], consequence: str) -> None:
    if failed := [gate.name for gate in results if not gate.passed]:
        raise ConfigError(f"gates not passed: {'; '.join(failed)}", consequence)


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def main() -> None:
    """Run a command; the operator's mistakes end it with a hint, not with a traceback."""
    try:
        app()
    except (ConfigError, ProtocolError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
