"""`python -m deploy release`: the agent's next version as one signed file, for devices that are in the field."""

import hashlib
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from broker_aggregator.config import load_config
from broker_aggregator.keyring import Keyring
from fl_protocol.agent_release import pack_release
from fl_protocol.codec import from_plain, to_plain
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import AgentRelease

from .flash.wheelhouse import read_wheelhouse

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None)
_OURS = re.compile(r"anabranch-([^-]+)-.+\.whl")


@app.callback()
def release() -> None:
    """The agent's next version as one signed file, for devices that are in the field."""


@app.command()
def make(
    kit: Annotated[Path, typer.Argument(help="What `deploy wheelhouse` made, for the devices' --arch and --python.")],
    *,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    config: Annotated[Path, typer.Option(help="The gateway's configuration: the fleet, and where its key lies.")],
    base: Annotated[
        Path | None, typer.Option(help="The kit that the devices have now: wheels that did not change stay out.")
    ] = None,
    number: Annotated[
        int | None, typer.Option(help="Orders a fleet's releases; the time in seconds unless told.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Pack and sign a release. Devices take none whose number is lower than that of what they run.

    To go back to an older version, make a new release of the older kit. The same kit, key and --number give the same
    bytes. Example: deploy release make kit --base old-kit --out agent-0.2.tar --config gateway.toml
    """
    settings = load_config(config, os.environ)
    if not settings.key_path.exists():
        raise ConfigError(f"there is no fleet's key {settings.key_path}", "`broker-aggregator run` makes it at first")
    manifest, files = choose(kit, base, number or int(time.time()))
    ring = Keyring.load(settings.key_path)
    manifest = replace(manifest, keys=ring.chain)
    packed = pack_release(manifest, files, ring.key, settings.gateway.fleet)
    write_durably(out, packed)
    facts = {"file": str(out), "bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest(), **to_plain(manifest)}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(
        f"{out}: anabranch {manifest.version}, release {manifest.counter}, for {manifest.arch} with Python "
        f"{manifest.python}: {len(files)} wheels, {len(packed) / 1e6:.1f} MB, sha256 {facts['sha256']}"
    )


def choose(kit: Path, base: Path | None, number: int) -> tuple[AgentRelease, dict[str, bytes]]:
    """What goes in: our wheel, pip's, and what is not in `base`. Raises `ConfigError`."""
    found, before = read_wheelhouse(kit), read_wheelhouse(base) if base else {}
    arch, python = (found[name].decode().strip() for name in ("arch", "python"))
    if base and (before["arch"], before["python"]) != (found["arch"], found["python"]):
        raise ConfigError(f"--base: {base} is for another --arch or --python than {kit}", "name the devices' own kit")
    ours = [match for name in found if (match := _OURS.fullmatch(name))]
    if len(ours) != 1 or not any(name.startswith("pip-") for name in found):
        raise ConfigError(f"{kit} lacks our wheel or pip's", f"`python -m deploy wheelhouse {kit}` makes it again")
    always = ("pip-", "anabranch-")
    files = {
        name: data
        for name, data in found.items()
        if name.endswith(".whl") and (name.startswith(always) or before.get(name) != data)
    }
    plain = {
        "counter": number,
        "version": ours[0][1],
        "arch": arch,
        "python": python,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "sizes": {name: len(data) for name, data in files.items()},
    }
    try:
        return from_plain(AgentRelease, plain), files
    except ProtocolError as error:
        raise ConfigError(f"{kit} makes no release: {error.message}", "see the names and sizes of its wheels") from None
