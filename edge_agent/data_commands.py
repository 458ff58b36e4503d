"""`edge-agent data show` and `edge-agent data forget`."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.data import no_ring, ring_directory
from edge_agent.ring_files import Held, erase, look
from edge_agent.sensors import read_counts
from fl_protocol.errors import ConfigError

Command = Callable[[AgentConfig, argparse.Namespace], int]


def add_data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", alone: "Alone") -> None:
    """Add `data` with its two commands; `alone` holds a state directory against a running agent."""
    description = "look at this device's examples, or erase them"
    below = commands.add_parser("data", help=description, description=description).add_subparsers(
        required=True, metavar="COMMAND"
    )
    show: Command = _show
    forget: Command = lambda config, options: _forget(config, options, alone)  # noqa: E731 - one shape for all
    for name, command, what in (
        ("show", show, "say how many examples there are, since when, and what became of the sensors' messages"),
        ("forget", forget, "erase every example from the disk; the agent must not run"),
    ):
        sub = below.add_parser(name, help=what, description=what)
        sub.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML; see docs/quickstart.md")
        sub.add_argument("--json", action="store_true", help="for programs: JSON")
        if name == "forget":
            sub.add_argument("--yes", action="store_true", help="do not ask")
        sub.set_defaults(command=command)


Alone = Callable[[Path], AbstractContextManager[None]]


def _show(config: AgentConfig, options: argparse.Namespace) -> int:
    if config.data.source != "ring":
        raise no_ring(config)
    directory = ring_directory(config)
    held, counts = look(directory), read_counts(directory)
    if options.json:
        sys.stdout.write(json.dumps({"path": str(directory), **asdict(held), "heard": counts}, indent=2) + "\n")
        return 0
    most = config.ring.max_bytes
    lines = {
        "ring": directory,
        "examples": held.examples,
        "shape": "" if held.shape is None else " x ".join(map(str, held.shape)),
        "on the disk": f"{held.num_bytes / 2**20:.2f} of {most / 2**20:.2f} MB, {held.segments} segments",
        "oldest": _when(held.oldest_s),
        "newest": _when(held.newest_s),
        **({"damaged": f"{held.damaged} bytes, not read"} if held.damaged else {}),
        **{name: value for name, value in counts.items() if name != "not used"},
    }
    for name, value in lines.items():
        sys.stdout.write(f"{name:<12} {value}\n")
    not_used = counts.get("not used")
    for reason, count in not_used.items() if isinstance(not_used, dict) else ():
        sys.stdout.write(f"{'not used':<12} {count}: {reason}\n")
    return 0


def _forget(config: AgentConfig, options: argparse.Namespace, alone: Alone) -> int:
    if config.data.source != "ring":
        raise no_ring(config)
    directory = ring_directory(config)
    if not options.yes and not _agreed(directory, look(directory)):
        return 1
    with alone(config.device.state_dir):
        try:
            gone = erase(directory)
        except OSError as error:
            raise ConfigError(
                f"cannot erase {directory}: {error.strerror}", "run it as the agent's user, on a disk without errors"
            ) from None
    if options.json:
        sys.stdout.write(json.dumps({"path": str(directory), **asdict(gone)}, indent=2) + "\n")
    else:
        sys.stdout.write(f"erased {gone.examples} examples, {gone.num_bytes} bytes, from {directory}\n")
    return 0


def _agreed(directory: Path, held: Held) -> bool:
    """Whether the person at the terminal says yes. Raises `ConfigError` where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here", "give --yes to erase without a question")
    return input(f"erase {held.examples} examples in {directory}? [y/N] ").strip().lower() in ("y", "yes")


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
