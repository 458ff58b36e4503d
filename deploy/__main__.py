"""`python -m deploy`: put the agent on cards and devices, and the gateway on its machine."""

import sys
from typing import NoReturn

import typer

from fl_protocol.errors import ConfigError, ProtocolError

from .backup.command import backup, restore
from .flash.command import deb, flash, wheelhouse
from .fleet.command import app as fleet
from .gateway.command import app as gateway
from .image.command import image
from .release import app as release

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(gateway, name="gateway")
app.add_typer(fleet, name="fleet")
app.add_typer(release, name="release")
app.command()(flash)
app.command()(image)
app.command()(wheelhouse)
app.command()(deb)
app.command()(backup)
app.command()(restore)


@app.callback()
def deploy() -> None:
    """Put the agent on cards and devices, and the gateway on its machine."""


def _fail(error: ConfigError | ProtocolError) -> NoReturn:
    hint = getattr(error, "hint", "")
    typer.echo(f"deploy: {error.message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
    sys.exit(2)


def main() -> None:
    """The command, with errors as one sentence and a hint."""
    try:
        app()
    except (ConfigError, ProtocolError) as error:
        _fail(error)


if __name__ == "__main__":
    main()
