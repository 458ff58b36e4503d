"""`python -m deploy backup` and `restore`: options, what they print, and the order of things."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from broker_aggregator.config import load_config
from fl_protocol.errors import ConfigError

from .making import make_backup
from .restoring import restore as restore_backup
from .sealing import check_passphrase

progress = Console(stderr=True)
PassphraseOption = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file whose first line seals the backup: keep it elsewhere.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def backup(
    out: Annotated[Path, typer.Argument(help="The file to write; one that is there is never replaced.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The gateway's TOML file.")],
    passphrase_file: PassphraseOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Unsealed: whoever reads the file can be the gateway, and any device.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write all that makes a gateway into one file, while it runs, and read it back.

    Store, the fleet's key, the certificate authority with its key, configuration, bundles, held-out examples. Sealed
    with scrypt and AES-256-GCM. Make one after `broker-aggregator rotate-key`: an older one cannot speak for the fleet.
    """
    passphrase = _passphrase(passphrase_file)
    if (passphrase is None) != plain:
        if plain:
            raise ConfigError("--plain with --passphrase-file", "leave one of them out")
        raise ConfigError("no --passphrase-file: the backup would lie open", "name one, or say --plain and guard it")
    settings = load_config(config, os.environ)
    with progress.status("reading") as status:
        made = make_backup(out, config, settings, passphrase, status.update)
    if as_json:
        fields = {"backup": str(made.path), "bytes": made.bytes, "sealed": not plain}
        typer.echo(json.dumps({**fields, **asdict(made.about), **asdict(made.found)}, indent=2))
        return
    found = made.found
    typer.echo(
        f"{made.path}: {made.bytes:,} bytes, read back; {found.tasks} tasks, {found.devices} devices,"
        f" {found.bundles} bundles"
    )
    for task in found.without_examples:
        typer.echo(f"note: the held-out examples of {task} are not there, and not in it")


def restore(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file that `backup` wrote.")],
    to: Annotated[Path, typer.Option("--to", help="A folder in place of /; / for this machine itself.")],
    passphrase_file: PassphraseOption = None,
    keep_tickets: Annotated[
        bool,
        typer.Option(
            "--keep-tickets", help="Tickets that were out stay good; one used since the backup would be, too."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a gateway back, where none is: everything is checked before anything stands there.

    What only grows (counters of signed messages, versions) goes on above all that the lost gateway can have said.
    Forgotten are: devices and revocations since the backup, and updates that came since.
    """
    passphrase = _passphrase(passphrase_file)
    with progress.status("reading") as status:
        done = restore_backup(source, to, passphrase, status.update, keep_tickets=keep_tickets)
    if as_json:
        fields = {"config": str(done.config), "data_dir": str(done.data)}
        more = {**asdict(done.about), **asdict(done.found), **asdict(done.advanced)}
        typer.echo(json.dumps({**fields, **more}, indent=2))
        return
    typer.echo(f"the gateway of {done.about.fleet} is in {done.data}; its configuration is {done.config}")
    for task, version in done.advanced.versions.items():
        typer.echo(f"  {task} goes on at version {version}")
    if done.advanced.void:
        typer.echo(
            f"  {len(done.advanced.void)} tickets that were out are void: `broker-aggregator device ticket` again"
        )
    at = "" if done.config == Path("/etc/anabranch-gateway/gateway.toml") else f" --root {to}"
    typer.echo(
        f"next: revoke again whom you revoked since the backup, then"
        f" `python -m deploy gateway up{at} --fleet {done.about.fleet} --name HOST`"
    )


def _passphrase(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return check_passphrase(path.read_bytes().split(b"\n", 1)[0])
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "name the file with the passphrase") from None
