"""Whether the agent or the gateway on this machine is at work: its loop says so, `anabranch-health` reads it.

The file lies in `$RUNTIME_DIRECTORY`, which systemd sets to a directory in memory and the images too, so a heartbeat
wears no flash out; without that variable none is kept. Times are the machine's monotonic clock, which no correction of
the date moves.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fl_protocol.errors import ConfigError

VARIABLE = "RUNTIME_DIRECTORY"
FILE = "heartbeat.json"
BEAT_S = 5.0  # how often it is written, at most
FRESH_S = 30.0  # a loop that did not turn for so long hangs
Clock = Callable[[], float]


class Heartbeat:
    """Written by the loop. A file that cannot be written is no reason to stop working: it grows old, which tells."""

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Clock = time.monotonic) -> None:
        self._path, self._clock = path_of(environ), clock
        self._due, self._said, self._since = float("-inf"), False, clock()

    def beat(self, connected: bool) -> None:
        """The loop turned; `connected`: it has its broker."""
        now = self._clock()
        if connected != self._said:
            self._said, self._since = connected, now
        elif now < self._due:
            return
        self._due = now + BEAT_S
        if self._path is None:
            return
        text = json.dumps({"pid": os.getpid(), "at": now, "connected": connected, "since": self._since})
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(text)  # in memory, and of no worth after a power cut: not synced
            temporary.replace(self._path)
        except OSError:
            return


def path_of(environ: Mapping[str, str]) -> Path | None:
    """Where the heartbeat is kept; None where it is not. systemd separates several directories by colons."""
    directory = environ.get(VARIABLE, "").partition(":")[0]
    return Path(directory) / FILE if directory else None


def look(path: Path, fresh_s: float = FRESH_S, clock: Clock = time.monotonic) -> dict[str, object]:
    """What the last heartbeat says: `healthy`, `why` not, `age_s`, `connected`. Raises `ConfigError` without one."""
    try:
        said = json.loads(path.read_text())
        age_s, silent_s = clock() - float(said["at"]), clock() - float(said["since"])
        connected = bool(said["connected"])
    except FileNotFoundError:
        raise ConfigError(f"there is no heartbeat {path}", "start the agent or the gateway") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no heartbeat: {error}", "restart the program that writes it") from None
    why = ""
    if not 0 <= age_s <= fresh_s:
        why = f"the loop last turned {age_s:.0f} s ago; more than {fresh_s:.0f} is too long"
    elif not connected:
        why = f"no broker for {silent_s:.0f} s"
    return {"healthy": not why, "why": why, "age_s": round(age_s, 1), "connected": connected}


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="anabranch-health",
        description="Whether the agent or the gateway here is at work: its loop turns, and it has its broker. Ends "
        "with 0 for yes, 1 for no, 2 where there is nothing to look at. For HEALTHCHECK, systemd, monitoring.",
    )
    parser.add_argument("--directory", type=Path, metavar="DIR", help=f"where the heartbeat lies; else ${VARIABLE}")
    parser.add_argument("--fresh", type=float, default=FRESH_S, metavar="S", help="seconds that it may be old (30)")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; imports nothing heavy, because it runs every half minute on small boards."""
    options = make_parser().parse_args(arguments)
    try:
        path = options.directory / FILE if options.directory else path_of(os.environ)
        if path is None:
            raise ConfigError(f"${VARIABLE} is not set", "name the directory of the heartbeat with --directory")
        found = look(path, options.fresh)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(f"{'healthy' if found['healthy'] else 'not healthy: ' + str(found['why'])}\n")
    return 0 if found["healthy"] else 1


if __name__ == "__main__":
    sys.exit(main())
