"""A Debian package with the agent: a Jetson or any Debian-like device gets it by `dpkg -i`, without PyPI.

It carries the wheelhouse, and its `postinst` runs the same `anabranch-first-boot` as a flashed card. Where the device's
own Python is too old (JetPack 6 has 3.10) the package carries one: Debian 12's python3.11, unpacked beside the rest.
"""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fl_protocol.errors import ConfigError

from .tools import find_tool, run_tool
from .wheelhouse import read_wheelhouse

BUNDLED = "3.11"
_PYTHON_PACKAGES = (f"python{BUNDLED}-minimal", f"libpython{BUNDLED}-minimal", f"libpython{BUNDLED}-stdlib")
# What the modules link that the agent and pip import; Ubuntu 22.04, which JetPack 6 is, has them all.
_LIBRARIES = "libssl3, libexpat1, zlib1g, libffi8, libsqlite3-0, libuuid1, libbz2-1.0, liblzma5"
_GLIBC = (2, 35)  # Ubuntu 22.04's
_HOME = "opt/anabranch"

_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  {python}sh /opt/anabranch/kit/anabranch-first-boot --kit /opt/anabranch/kit --package
fi
"""
_PRERM = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl stop anabranch-update.path anabranch-agent.service || :; fi
if [ "$1" = remove ]; then
  systemctl disable --quiet anabranch-agent.service anabranch-update.service anabranch-update.path || :
fi
"""
# The identity and the data stay until `apt purge`: without them the device is another one.
_POSTRM = """\
#!/bin/sh
set -e
case "$1" in
  remove | purge)
    rm -rf /opt/anabranch /etc/systemd/system/anabranch-agent.service /usr/lib/sysusers.d/anabranch.conf
    rm -f /etc/systemd/system/anabranch-update.service /etc/systemd/system/anabranch-update.path
    rm -f /usr/local/sbin/anabranch-update
    if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi ;;
esac
if [ "$1" = purge ]; then
  rm -rf /etc/anabranch /var/lib/anabranch /var/lib/anabranch-first-boot /var/lib/anabranch-update
fi
"""


@dataclass(frozen=True)
class Package:
    """What was made; `python` says whose interpreter it uses."""

    path: Path
    arch: str
    python: str
    size: int


def build_deb(out: Path, wheelhouse: Path, interpreter: Path | None, *, with_python: bool) -> Package:
    """Write the package from a wheelhouse. Raises `ConfigError`.

    `interpreter` is a folder with Debian 12's three python3.11 packages; without one they are fetched by apt.
    """
    read_wheelhouse(wheelhouse)
    facts = json.loads((wheelhouse / "wheelhouse.json").read_text("utf-8"))
    arch, python = str(facts["arch"]), str(facts["python"])
    bundled = with_python or interpreter is not None
    if bundled and python != BUNDLED:
        raise ConfigError(
            f"--wheelhouse: its wheels are for Python {python}, the interpreter is {BUNDLED}",
            f"`python -m deploy wheelhouse {wheelhouse} --arch {arch} --python {BUNDLED}`",
        )
    with tempfile.TemporaryDirectory(prefix="anabranch-deb-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(wheelhouse, tree / _HOME / "kit")
        if bundled:
            _unpack_python(interpreter or _fetch_python(arch, Path(folder)), arch, tree / _HOME / "python")
        _write_control(tree / "DEBIAN", arch, python, bundled=bundled)
        tree.chmod(0o755)
        new = out.with_name(f".{out.name}.new")
        try:
            run_tool("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(new))
            new.replace(out)
        finally:
            new.unlink(missing_ok=True)
    return Package(out, arch, f"its own {BUNDLED}" if bundled else f"the device's {python}", out.stat().st_size)


def _write_control(folder: Path, arch: str, python: str, *, bundled: bool) -> None:
    major, minor = map(int, python.split("."))
    needs = f"libc6 (>= {_GLIBC[0]}.{_GLIBC[1]}), {_LIBRARIES}"
    if not bundled:
        needs = f"python3 (>= {python}), python3 (<< {major}.{minor + 1})"
    folder.mkdir(mode=0o755)
    (folder / "control").write_text(
        f"Package: anabranch-agent\nVersion: {version('anabranch')}\nArchitecture: {arch}\n"
        f"Depends: systemd, {needs}\nSection: net\nPriority: optional\n"
        "Maintainer: Anabranch\nDescription: federated learning on edge devices, the device's side\n"
        " The agent, with all it needs from PyPI, as the service anabranch-agent.\n"
        " Put the ticket at /etc/anabranch/ticket.toml, or see anabranch-first-boot.\n"
    )
    own = f"ANABRANCH_PYTHON=/{_HOME}/python/bin/python{BUNDLED} " if bundled else ""
    for name, text in (("postinst", _POSTINST.format(python=own)), ("prerm", _PRERM), ("postrm", _POSTRM)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _fetch_python(arch: str, folder: Path) -> Path:
    """Download the three packages with apt, which is left as it is. Raises `ConfigError`."""
    lists, cache, packages = (folder / name for name in ("lists", "cache", "packages"))
    for path in (lists / "partial", cache / "archives/partial", packages):
        path.mkdir(parents=True)
    (folder / "status").touch()
    options = [f"Dir::State::lists={lists}", f"Dir::State::status={folder / 'status'}", f"Dir::Cache={cache}"]
    options += [f"APT::Architecture={arch}", f"APT::Architectures={arch}", "APT::Sandbox::User=root"]
    apt = [find_tool("apt-get"), "--quiet=2", *(word for option in options for word in ("-o", option))]
    for command in (["update"], ["download", *_PYTHON_PACKAGES]):
        result = subprocess.run([*apt, *command], cwd=packages, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            words = (result.stderr.strip().splitlines() or ["it does not say why"])[-1]
            raise ConfigError(
                f"apt cannot fetch python{BUNDLED} for {arch}: {words}",
                f"run this on Debian 12, or fetch {', '.join(_PYTHON_PACKAGES)} there and name the folder "
                "with --interpreter",
            )
    return packages


def _unpack_python(packages: Path, arch: str, into: Path) -> None:
    """The interpreter finds its library beside itself, wherever it lies. Raises `ConfigError`."""
    into.mkdir(parents=True)
    for name in _PYTHON_PACKAGES:
        found = sorted(packages.glob(f"{name}_*_{arch}.deb"))
        if not found:
            raise ConfigError(f"--interpreter: {packages} has no {name}_*_{arch}.deb", "fetch it on Debian 12")
        with tempfile.TemporaryDirectory(prefix="anabranch-python-") as folder:
            run_tool("dpkg-deb", "--extract", str(found[-1]), folder)
            shutil.copytree(Path(folder) / "usr", into, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(into / "share")
    for link in (path for path in into.rglob("*") if path.is_symlink() and not path.exists()):
        link.unlink()  # what points into /etc of a Debian
    program = into / f"bin/python{BUNDLED}"
    # The kernel's loader asks for versioned symbols by these names.
    needed = [(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", program.read_bytes())]
    if max(needed) > _GLIBC:
        raise ConfigError(f"{program.name} asks for glibc {max(needed)}", "take Debian 12's packages")
