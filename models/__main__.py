"""`python -m models build | gates | list`: the workshop's commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from models.build import build as build_bundle
from models.gates import run_gates
from models.spec import ModelSpec, catalog, load

SHIPPED = Path(__file__).parents[1] / "anabranch" / "data"

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Compile torch models into bundles.")
console = Console()

Name = Annotated[str, typer.Argument(help="a model of the catalog")]
BundleFile = Annotated[Path | None, typer.Option(help="default: anabranch/data/NAME.bundle")]


@app.command("list")
def list_models() -> None:
    """Name every model of the catalog."""
    for name in catalog():
        console.print(f"{name}  {load(name).description}")


@app.command()
def build(name: Name, out: BundleFile = None) -> None:
    """Compile a model, hold it against every gate, and only then write its bundle."""
    spec = load(name)
    data = build_bundle(spec)
    bundle = Bundle.read(data)
    _check(bundle, spec)
    out = out or SHIPPED / f"{name}.bundle"
    write_durably(out, data)
    console.print(f"{out}  {len(data):,} bytes, {bundle.layout.num_parameters:,} parameters\nsha256 {bundle.sha256}")


@app.command()
def gates(name: Name, bundle: BundleFile = None) -> None:
    """Hold a bundle that is already built against every gate."""
    _check(Bundle.read((bundle or SHIPPED / f"{name}.bundle").read_bytes()), load(name))


def _check(bundle: Bundle, spec: ModelSpec) -> None:
    table = Table("gate", "measured", "allowed", "")
    results = run_gates(bundle, spec)
    for gate in results:
        table.add_row(gate.name, gate.measured, gate.allowed, "passed" if gate.passed else "[red]FAILED")
    console.print(table)
    if not all(gate.passed for gate in results):
        raise ConfigError(f"{spec.name} does not pass its gates", "see the table above; nothing was written")


def main() -> None:
    """Run a command; the operator's mistakes end it with a hint, not with a traceback."""
    try:
        app()
    except ConfigError as error:
        Console(stderr=True).print(f"error: {error}", style="red")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
