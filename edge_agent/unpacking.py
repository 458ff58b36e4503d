"""What root's side of an update asks of the agent that works: `python -I -m edge_agent.unpacking`, by anabranch-update.

The account `anabranch` may write the spool and its identity while root reads them. So the spool is read once, into a
folder of root's, and what was read is what is checked; and the fleet's key is the one that root saw first.
"""

import argparse
import ctypes
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.updating import check_fits, read_installed
from fl_protocol.agent_release import check_release, sink_to
from fl_protocol.durable import OS_FILES
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.settings import read_table

REFUSED, INSTALLED_ALREADY = 3, 4
_EXCHANGE, _AT_FDCWD = 2, -100
_MAX_IDENTITY = 64 << 10


def unpack(spool: Path, into: Path, pin: Path, installed: Path, bad: Path) -> bool:
    """Check the spooled release and put its wheels and its line `release` into `into`; False: it is what runs.

    Raises `ProtocolError`, `ConfigError`, `OSError`.
    """
    fleet, public_key = pin.read_text("ascii").split()
    descriptor = os.open(spool, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{spool} is no plain file", "spool the release by `edge-agent update`")
        checked = check_release(file, public_key, fleet, sink_to(into))
    manifest, known = checked.manifest, read_installed(installed)
    (into / "release").write_text(f"{manifest.counter} {checked.digest} {manifest.version}\n", "ascii")
    check_fits(checked, known, bad.parent)
    (into / "fleet").write_text(f"{fleet} {checked.key}\n", "ascii")  # root's pin from here on
    return checked.digest != known.digest


def fleet_and_key(identity: Path) -> str:
    """The line `fleet key` of a device's identity. Raises `ConfigError`, `OSError`."""
    if identity.is_symlink() or identity.stat().st_size > _MAX_IDENTITY:
        raise ConfigError(f"{identity} is no identity", "enrol the device again")
    table = read_table(identity)
    try:
        fleet, key = str(table["device"]["fleet"]), str(table["gateway"]["public_key"])
    except (KeyError, TypeError):
        raise ConfigError(f"{identity} names no fleet's key", "enrol the device again") from None
    return f"{fleet} {key}"


def adopt(venv: Path, slot: Path) -> None:
    """Make a directory `venv` the slot `slot`, and `venv` a link to it, at one stroke. Raises `OSError`.

    What an earlier try left, a link at `slot`, is replaced.
    """
    slot.unlink(missing_ok=True)
    slot.symlink_to(slot.name)  # to itself, until it lies where `venv` did
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(venv), _AT_FDCWD, os.fsencode(slot), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        slot.unlink()
        raise OSError(number, os.strerror(number), str(venv))
    OS_FILES.sync_directory(venv.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 3 with a sentence on standard error for what is refused; 4 for a release that runs already."""
    parser = argparse.ArgumentParser(prog="edge_agent.unpacking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shapes = {
        "unpack": ("spool", "into", "pin", "installed", "bad"),
        "identity": ("identity",),
        "adopt": ("venv", "slot"),
    }
    for name, places in shapes.items():
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "adopt":
            adopt(options.venv, options.slot)
        elif options.command == "identity":
            sys.stdout.write(fleet_and_key(options.identity) + "\n")
        elif not unpack(options.spool, options.into, options.pin, options.installed, options.bad):
            return INSTALLED_ALREADY
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return REFUSED
    except (OSError, ValueError) as error:
        sys.stderr.write(f"the release cannot be read: {error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
