"""A folder with all that a device without PyPI needs: our wheel, what it stands on, pip's own, and the kit."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError

from .seed import KIT, STATE_DIR, SYSTEMD, agent_toml

MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
PYTHONS = ("3.11", "3.12", "3.13")
_GLIBCS = ((2, 34), (2, 31), (2, 28), (2, 27), (2, 26), (2, 24), (2, 17))  # what Debian 12, its like, and older have
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Wheelhouse:
    """What lies in one: sizes by file name."""

    folder: Path
    arch: str
    python: str
    sizes: dict[str, int]

    @property
    def megabytes(self) -> float:
        """On the card."""
        return sum(self.sizes.values()) / 1e6


def build_wheelhouse(
    folder: Path, arch: str, python: str, wheel: Path | None, tell: Callable[[str], None]
) -> Wheelhouse:
    """Fill `folder`, which may hold an earlier one. Raises `ConfigError`."""
    if arch not in MACHINES:
        raise ConfigError(f"--arch: {arch!r} is not known", f"one of {', '.join(MACHINES)}")
    if python not in PYTHONS:
        raise ConfigError(f"--python: {python!r} is not known", f"one of {', '.join(PYTHONS)}: what the image has")
    wheels = folder / "wheels"
    if folder.exists() and any(folder.iterdir()) and not (wheels / "SHA256SUMS").is_file():
        raise ConfigError(f"{folder} holds something else", "name a new folder, or an earlier wheelhouse")
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.iterdir():
        old.unlink()
    tell("building our wheel")
    ours = _our_wheel(wheel, wheels)
    tell(f"downloading what it needs on {arch} with Python {python}")
    _pip("download", "--only-binary=:all:", *platforms(arch, python), f"{ours}[agent]", "--dest", str(wheels))
    _pip("download", "--only-binary=:all:", "--no-deps", "pip", "--dest", str(wheels))
    return _finish(folder, arch, python)


def platforms(arch: str, python: str) -> list[str]:
    """What pip has to be told to take another machine's wheels."""
    names = [f"--platform=manylinux_{a}_{b}_{MACHINES[arch]}" for a, b in _GLIBCS]
    names.append(f"--platform=manylinux2014_{MACHINES[arch]}")
    return [*names, "--implementation=cp", f"--python-version={python}", f"--abi=cp{python.replace('.', '')}"]


def read_wheelhouse(folder: Path) -> dict[str, bytes]:
    """Every file of its wheels/, held against its sums. Raises `ConfigError`."""
    wheels = folder / "wheels"
    try:
        files = {path.name: path.read_bytes() for path in sorted(wheels.iterdir())}
        sums = {line[66:]: line[:64] for line in files["SHA256SUMS"].decode().splitlines()}
    except (OSError, KeyError, ValueError):
        raise ConfigError(
            f"--wheelhouse: {folder} is none", f"`python -m deploy wheelhouse {folder}` makes it"
        ) from None
    for name, sha256 in sums.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != sha256:
            raise ConfigError(
                f"--wheelhouse: {wheels / name} is damaged", f"`python -m deploy wheelhouse {folder}` again"
            )
    return {name: data for name, data in files.items() if name in {*sums, "SHA256SUMS", "python", "arch"}}


def by_hand(folder: Path) -> str:
    """The command that does to a device that already runs what the first boot does to a card."""
    name = folder.resolve().name
    return (
        f"scp -r {folder} TICKET.toml USER@DEVICE: && "
        f"ssh -t USER@DEVICE sudo sh {name}/anabranch-first-boot --kit {name} --ticket TICKET.toml"
    )


def _our_wheel(wheel: Path | None, into: Path) -> Path:
    if wheel is not None:
        if wheel.suffix != ".whl" or not wheel.is_file():
            raise ConfigError(f"--wheel: {wheel} is no wheel", "name an anabranch-*.whl file")
        copy = into / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy
    if not (_CHECKOUT / "pyproject.toml").is_file():
        raise ConfigError("this is no checkout to build a wheel from", "name one with --wheel anabranch-*.whl")
    _pip("wheel", "--no-deps", str(_CHECKOUT), "--wheel-dir", str(into))
    return next(into.glob("anabranch-*.whl"))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        words = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines() or ["?"]
        raise ConfigError(
            f"pip {arguments[0]}: {words[-1].removeprefix('ERROR: ')}",
            "see that PyPI can be reached, and that every package has a wheel for this --arch and --python",
        )


def _finish(folder: Path, arch: str, python: str) -> Wheelhouse:
    """The sums are written last: without them it is no wheelhouse."""
    wheels = folder / "wheels"
    sizes = {path.name: path.stat().st_size for path in sorted(wheels.glob("*.whl"))}
    sums = "".join(f"{hashlib.sha256((wheels / name).read_bytes()).hexdigest()}  {name}\n" for name in sizes)
    for name in KIT:
        write_durably(folder / name, (SYSTEMD / name).read_bytes())
    write_durably(folder / "agent.toml", agent_toml(f"{STATE_DIR}/data", None).encode())
    facts = {"arch": arch, "python": python, "wheels": sizes}
    write_durably(folder / "wheelhouse.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_durably(wheels / "python", f"{python}\n".encode())
    write_durably(wheels / "arch", f"{arch}\n".encode())
    write_durably(wheels / "SHA256SUMS", sums.encode())
    return Wheelhouse(folder, arch, python, sizes)
