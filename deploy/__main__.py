"""`python -m deploy`: put a fleet into the world."""

import sys

import typer

from deploy.fleet.command import app as fleet_app
from deploy.gateway.command import app as gateway_app
from fl_protocol.errors import ConfigError, ProtocolError

app = typer.Typer(
    add_completion=False, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(fleet_app, name="fleet")
app.add_typer(gateway_app, name="gateway")


@app.callback()
def deploy() -> None:
    """Put a fleet into the world: the gateway's machine, images, and virtual fleets of containers."""


def main() -> None:
    """The command, with errors as one sentence and a hint."""
    try:
        app()
    except (ConfigError, ProtocolError) as error:
        typer.echo(f"deploy: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
