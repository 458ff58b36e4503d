"""The agent's own updates, on the agent's side: a release is checked and left where root's side of it looks.

`anabranch-update` (deploy/systemd) does the rest as root, and trusts nothing that this file says: see `unpacking.py`.
"""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.agent_release import Checked, check_release
from fl_protocol.durable import OS_FILES, Files, make_directory
from fl_protocol.errors import Code, ConfigError, ProtocolError

SPOOL = Path("update/release.tar")  # in the agent's state directory
ROOTS = Path("/var/lib/anabranch-update")  # root's side: `report`, `bad`, `highest`
UPDATER = Path("/usr/local/sbin/anabranch-update")
INSTALLED = Path("/opt/anabranch/venv/release")
_MACHINES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64", "amd64": "amd64"}
_PIECE = 1 << 18


@dataclass(frozen=True)
class Installed:
    """What runs: the number of its release and the digest that names it; 0 for what no release brought."""

    number: int = 0
    digest: str = ""
    version: str = ""


@dataclass(frozen=True)
class Report:
    """How the last update ended: `successful`, `failed` or `executing`, of which release, and why."""

    state: str
    number: int
    version: str
    why: str


def read_installed(path: Path) -> Installed:
    """The line `number digest version` that an installed release has beside its programs; number 0 without one."""
    try:
        number, digest, version = path.read_text("ascii").split()
        return Installed(int(number), digest, version)
    except FileNotFoundError:
        return Installed()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no release's line: {error}", "install the agent again by its kit") from None


def read_report(path: Path) -> Report | None:
    """What `anabranch-update` reported last; None before its first word. Raises `ConfigError`."""
    try:
        state, number, version, why = path.read_text("utf-8", "replace").split("\n", 3)
        return Report(state, int(number), version, why.strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no report: {error}", "see `journalctl -u anabranch-update`") from None


def check_fits(checked: Checked, installed: Installed, roots: Path) -> None:
    """Raises `ProtocolError`: E_VERSION for another machine, E_DOWNGRADE for a lower number, E_OLD for one that failed.

    A release that is installed fits: it is found to be there. A kit that was installed since has no number, so root's
    side, in `roots`, keeps the highest that worked here. Raises `OSError` too, and `ConfigError`.
    """
    manifest = checked.manifest
    here = (arch_name(), ".".join(map(str, sys.version_info[:2])))
    if (manifest.arch, manifest.python) != here:
        there = f"{manifest.arch} with Python {manifest.python}"
        raise ProtocolError(Code.VERSION, f"the release is for {there}, this is {here[0]} with {here[1]}")
    if checked.digest == installed.digest:
        return
    if manifest.counter <= installed.number:
        raise ProtocolError(
            Code.DOWNGRADE, f"release {manifest.counter} after {installed.number}; make a new one of the older kit"
        )
    if manifest.counter < (highest := _read_highest(roots / "highest")):
        raise ProtocolError(Code.DOWNGRADE, f"release {manifest.counter}, and {highest} was here; make a new one")
    bad = roots / "bad"
    if bad.exists() and checked.digest in bad.read_text("ascii").split():
        raise ProtocolError(Code.OLD, f"release {manifest.counter} was tried here, and did not work")


def _read_highest(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except FileNotFoundError:
        return 0
    except ValueError:
        raise ConfigError(f"{path} is no number", "remove it") from None


def spool_release(
    source: Path,
    state_dir: Path,
    public_key: str,
    fleet: str,
    *,
    installed: Path = INSTALLED,
    roots: Path = ROOTS,
    files: Files = OS_FILES,
) -> Checked:
    """Check a release and leave it for root's side, on the disk when this returns. Raises `ProtocolError`, `OSError`.

    `anabranch-update.path` sees the file as soon as it has its name.
    """
    with source.open("rb") as file:
        checked = check_release(file, public_key, fleet)
        check_fits(checked, read_installed(installed), roots)
        spool = state_dir / SPOOL
        make_directory(spool.parent, files)
        temporary = files.temporary(spool)
        file.seek(0)
        try:
            with files.create(temporary, 0o600) as out:
                while piece := file.read(_PIECE):
                    out.write(piece)
                out.sync()
            files.rename(temporary, spool)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        files.sync_directory(spool.parent)
    return checked


def arch_name() -> str:
    """This machine's processor, as releases name it."""
    return _MACHINES.get(platform.machine(), platform.machine())


def has_updater(path: Path = UPDATER) -> bool:
    """Whether root's side is installed here."""
    return os.access(path, os.X_OK)
