"""`python -m deploy image`: options, the order of things, and what is printed."""

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fl_protocol.errors import ConfigError

from ..flash.tools import find_tool
from ..flash.wheelhouse import build_wheelhouse
from .assembling import MIB, assemble
from .filling import configure, install_agent
from .kernel import pack_initrd
from .system import PYTHON, SUITE, build_system, unpack_system

ARCH = "arm64"
console = Console(stderr=True)


def image(
    out: Annotated[Path, typer.Argument(help="The image to write (.img).")],
    system: Annotated[
        Path | None,
        typer.Option(help="Keep the Debian below the agent as this tar, or take it from there if it is there."),
    ] = None,
    wheelhouse: Annotated[
        Path | None, typer.Option(help=f"What `deploy wheelhouse --arch {ARCH} --python {PYTHON}` made.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Our wheel, without --wheelhouse; else it is built from this checkout.")
    ] = None,
    kernel: Annotated[
        str, typer.Option(help="Debian's package; linux-image-cloud-arm64 is smaller, for virtual machines only.")
    ] = "linux-image-arm64",
    size: Annotated[int, typer.Option(help="MiB of the image; the first boot grows it to its disk.")] = 2560,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Build a disk image for 64-bit ARM with UEFI: Debian 12, the agent installed, no ticket and no identity.

    `deploy flash` then makes it a device's, as it does with a stock image, and without --wheelhouse. Run it as root
    (it mounts nothing): a root file system has many owners. Example: deploy image fleet.img --system debian.tar
    """
    began = time.monotonic()
    if os.geteuid() != 0:
        raise ConfigError("a root file system has many owners, and only root makes them", "sudo python -m deploy image")
    for name in ("mke2fs", "mkfs.vfat", "sfdisk", "mcopy", "cpio", "depmod", "systemctl"):
        find_tool(name)  # before the ten minutes, not after
    if out.exists() and not out.is_file():
        raise ConfigError(f"{out} is no file", "`deploy flash --image` writes an image to a card")
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix=".anabranch-image-", dir=out.resolve().parent) as folder:
        work = Path(folder)
        tar = system or work / "system.tar"
        if not tar.exists():
            with _Timed(took, "system", f"making Debian {SUITE} for {ARCH}: about ten minutes under emulation"):
                build_system(tar, ARCH, kernel, console.log)
        kit = wheelhouse or work / "kit"
        if wheelhouse is None:
            with _Timed(took, "wheelhouse", "gathering the wheels"):
                build_wheelhouse(kit, ARCH, PYTHON, wheel, console.log)
        with _Timed(took, "unpack", f"unpacking {tar.name}"):
            base = unpack_system(tar, work / "root")
            configure(base)
        with _Timed(took, "agent", "installing the agent"):
            version = install_agent(base, kit)
        with _Timed(took, "assemble", f"writing {out}"):
            facts = {"agent": version, "arch": ARCH, "debian": SUITE, "kernel": base.kernel, "python": PYTHON}
            made = assemble(out, base, pack_initrd(base), size, facts)
    took["all"] = round(time.monotonic() - began, 1)
    if as_json:
        typer.echo(json.dumps({**asdict(made), "path": str(out), **facts, "seconds": took}, indent=2))
        return
    typer.echo(
        f"{out}: {made.size // MIB} MiB, of which {made.root_used / 1e6:.0f} MB root and {made.boot_used / 1e6:.0f} MB "
        f"boot are used; agent {version}, kernel {base.kernel}; {took['all']:.0f} s"
    )
    typer.echo(f"On a card: python -m deploy flash --image {out} --to CARD --ticket TICKET.toml")


class _Timed:
    """Tells a step, and keeps how long it took."""

    def __init__(self, took: dict[str, float], name: str, words: str) -> None:
        self._took, self._name, self._words = took, name, words

    def __enter__(self) -> None:
        console.log(self._words)
        self._began = time.monotonic()

    def __exit__(self, *failed: object) -> None:
        self._took[self._name] = round(time.monotonic() - self._began, 1)
