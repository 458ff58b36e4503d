"""`python -m deploy flash`, `wheelhouse` and `deb`: options, what they print, and the order of things."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from fl_protocol.errors import ConfigError

from .debian import build_deb
from .disks import Target, check_target, exclusively
from .imaging import forget, image_size, verify_image, write_image
from .partitions import boot_partition
from .seed import STATE_DIR, Seed, Wifi, agent_toml, hostname_of, read_ssh_key, read_ticket
from .wheelhouse import build_wheelhouse, by_hand, read_wheelhouse
from .writing import measure, verify_files, write_files

console = Console(stderr=True)  # progress; what scripts read goes to standard output
PASSPHRASE = "ANABRANCH_WIFI_PASSPHRASE"  # noqa: S105 - a variable's name

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def flash(
    target: Annotated[
        Path | None, typer.Argument(help="An unpacked stock image (.img), or a card that one was written to.")
    ] = None,
    *,
    ticket: Annotated[Path, typer.Option(help="The device's ticket; one card, one ticket.")],
    image: Annotated[Path | None, typer.Option(help="First write this image (.img, .img.xz) to the card --to.")] = None,
    to: Annotated[Path | None, typer.Option(help="The card to write --image to; all that is on it is lost.")] = None,
    wheelhouse: Annotated[
        Path | None, typer.Option(help="What `deploy wheelhouse` made; not needed where the image has the agent.")
    ] = None,
    data: Annotated[str, typer.Option(help="Where the device keeps its examples.")] = f"{STATE_DIR}/data",
    agent_config: Annotated[
        Path | None, typer.Option(help="Your own agent.toml, for budgets and gates; it says where the data is.")
    ] = None,
    ssh_key: Annotated[Path | None, typer.Option(help="A .pub file; without one nobody can log in.")] = None,
    user: Annotated[str, typer.Option(help="Who may log in with --ssh-key, and use sudo.")] = "anabranch-admin",
    wifi: Annotated[
        str | None, typer.Option(help=f"A network's SSID; its passphrase is asked for, or in ${PASSPHRASE}.")
    ] = None,
    wifi_country: Annotated[str, typer.Option(help="Two letters: which channels are allowed there.")] = "",
    hostname: Annotated[str, typer.Option(help="The device's name; one of its ticket unless told.")] = "",
    yes_this_disk: Annotated[
        str, typer.Option(help="The kernel's name (sdb) of a disk that is not removable, and meant.", metavar="NAME")
    ] = "",
    any_image: Annotated[
        bool, typer.Option("--any-image", help="The image asks cloud-init, though it has no user-data yet.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a stock image or card one device's: cloud-init's files, ticket, wheels and units on its boot partition.

    Needs no root for a file, and mounts nothing. It never writes to a disk that is mounted, swapped to or in use, and
    reads everything back. Example: deploy flash --image raspios.img.xz --to /dev/sdb --ticket t.toml --wheelhouse kit
    """
    path, size = _which(target, image, to)
    seed = Seed(
        ticket=(text := read_ticket(ticket)),
        agent_toml=agent_toml(data, agent_config),
        hostname=_hostname(hostname or hostname_of(text)),
        ssh_key=read_ssh_key(ssh_key) if ssh_key else "",
        user=user,
        wifi=Wifi.of(wifi, _passphrase(wifi), wifi_country) if wifi is not None else None,
    )
    files = seed.files(read_wheelhouse(wheelhouse) if wheelhouse else {})
    checked = check_target(path, yes_this_disk)
    if size > checked.size:
        raise ConfigError(
            f"{image} has {size / 1e9:.2f} GB, {path} only {checked.size / 1e9:.2f} GB", "take a larger card"
        )
    if dry_run:
        source = image or path
        facts = _examined(source, files, any_image) if source.suffix != ".xz" else {"boot": "unknown: packed"}
        _print(checked, files, facts, image, as_json=as_json, done=False)
        return
    with exclusively(checked) as descriptor:
        if image is not None:
            if image.suffix != ".xz":
                _examined(image, files, any_image)  # before the first byte
            with _bar(f"writing {image.name}", size) as step:
                sha256 = write_image(image, descriptor, size, step)
            with _bar("reading it back", size) as step:
                verify_image(descriptor, size, sha256, step)
        facts = _put_files(path, descriptor, files, any_image)
    _print(checked, files, facts, image, as_json=as_json, done=True)


def wheelhouse(
    folder: Annotated[Path, typer.Argument(help="A new folder, or an earlier wheelhouse, which is made again.")],
    arch: Annotated[str, typer.Option(help="arm64 or amd64.")] = "arm64",
    python: Annotated[
        str, typer.Option(help="What the image has: 3.11 (Debian 12), 3.12 (Ubuntu 24.04), 3.13 (Debian 13).")
    ] = "3.13",
    wheel: Annotated[Path | None, typer.Option(help="Our wheel; without it, it is built from this checkout.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Gather all wheels that a device needs, for `deploy flash --wheelhouse` or for one that already runs."""
    made = build_wheelhouse(folder, arch, python, wheel, console.log)
    if as_json:
        facts = {
            "folder": str(folder),
            "arch": arch,
            "python": python,
            "wheels": made.sizes,
            "by_hand": by_hand(folder),
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table("wheel", "MB")
    for name, size in made.sizes.items():
        table.add_row(name, f"{size / 1e6:.2f}")
    Console().print(table)
    typer.echo(f"{made.megabytes:.1f} MB for {arch} with Python {python} in {folder}\n")
    typer.echo(f"On a card: python -m deploy flash CARD --ticket TICKET.toml --wheelhouse {folder}")
    typer.echo(f"On a device that already runs:\n  {by_hand(folder)}")


def deb(
    out: Annotated[Path, typer.Argument(help="The .deb to write.")],
    wheelhouse: Annotated[Path, typer.Option(help="What `deploy wheelhouse` made.")],
    with_python: Annotated[
        bool, typer.Option("--with-python", help="Carry Debian 12's python3.11, for JetPack 6; fetched by apt.")
    ] = False,
    interpreter: Annotated[
        Path | None, typer.Option(help="A folder with its three .deb files, where apt cannot fetch them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a Debian package of a wheelhouse, for a Jetson or any Debian that already runs: `dpkg -i`, no PyPI.

    It asks for the device's own Python, of the wheelhouse's version, unless it carries one. The ticket comes after it.
    """
    made = build_deb(out, wheelhouse, interpreter, with_python=with_python)
    if as_json:
        facts = {"package": str(out), "arch": made.arch, "python": made.python, "bytes": made.size}
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{out}: {made.size / 1e6:.1f} MB for {made.arch}, runs on {made.python}")


def _which(target: Path | None, image: Path | None, to: Path | None) -> tuple[Path, int]:
    """What is written to, and how many bytes of an image come first. Raises `ConfigError`."""
    if image is not None and to is not None and target is None:
        return to, image_size(image)
    if target is not None and image is None and to is None:
        return target, 0
    raise ConfigError("what is to be flashed?", "name an image file or a card, or both: --image FILE --to CARD")


def _passphrase(ssid: str) -> str:
    if PASSPHRASE in os.environ:
        return os.environ[PASSPHRASE]
    if not sys.stdin.isatty():
        raise ConfigError(f"--wifi: there is no passphrase for {ssid}", f"put it into ${PASSPHRASE}")
    answer: str = typer.prompt(f"Passphrase of {ssid}", hide_input=True, err=True)
    return answer


def _hostname(name: str) -> str:
    plain = name.isascii() and name.replace("-", "").isalnum() and name.strip("-") == name and len(name) <= 63
    if not plain:
        raise ConfigError(f"--hostname: {name!r:.80} is no host's name", "letters, digits and - inside; 63 at most")
    return name.lower()


def _examined(path: Path, files: Mapping[str, bytes], any_image: bool) -> dict[str, object]:
    partition = boot_partition(path)
    return {"boot": asdict(partition), **asdict(measure(path, partition, files, any_image=any_image))}


def _put_files(path: Path, descriptor: int, files: Mapping[str, bytes], any_image: bool) -> dict[str, object]:
    facts = _examined(path, files, any_image)
    partition = boot_partition(path)
    total = sum(map(len, files.values()))
    with _bar(f"writing {len(files)} files to {partition.label}", total) as step:
        write_files(path, partition, files, step)
        os.fsync(descriptor)
    forget(descriptor)
    with _bar("reading them back", total) as step:
        verify_files(path, partition, files, step)
    return facts


@contextmanager
def _bar(what: str, total: int) -> Iterator["_Step"]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        yield _Step(progress, what, total)


class _Step:
    """Moves a bar on by bytes."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._task = progress, progress.add_task(what, total=total)

    def __call__(self, count: int) -> None:
        self._progress.advance(self._task, count)


def _print(
    target: Target,
    files: Mapping[str, bytes],
    facts: Mapping[str, object],
    image: Path | None,
    *,
    as_json: bool,
    done: bool,
) -> None:
    total = sum(map(len, files.values()))
    if as_json:
        sizes = {name: len(data) for name, data in files.items()}
        found = {"target": str(target.path), "image": image and str(image), "written": done, "verified": done}
        typer.echo(json.dumps({**found, **facts, "files": sizes, "bytes": total}, indent=2))
        return
    if not done:
        table = Table("file", "bytes")
        for name, data in files.items():
            table.add_row(name, f"{len(data):,}")
        Console().print(table)
        whole = f"all of {image}, then " if image else ""
        typer.echo(f"would write {whole}{len(files)} files, {total / 1e6:.1f} MB, to {target.path}; nothing is written")
        return
    typer.echo(f"{target.path} is ready: {len(files)} files, {total / 1e6:.1f} MB, written and read back")
