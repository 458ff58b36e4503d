"""`edge-agent update`: take a release of the agent, or say how the last one ended."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig
from edge_agent.updating import INSTALLED, ROOTS, UPDATER, has_updater, read_installed, read_report, spool_release
from fl_protocol.errors import ConfigError

DESCRIPTION = (
    "Check a release that `python -m deploy release make` made, and leave it for anabranch-update, which installs and "
    "tries it, and goes back by itself where it does not work. Without a release: what runs, and how the last update "
    "ended. Run it as the user of the agent: sudo -u anabranch /opt/anabranch/venv/bin/edge-agent update FILE --config "
    "/etc/anabranch/agent.toml"
)


def add_update_command(commands: Any) -> None:
    """Add the command to the agent's."""
    sub: argparse.ArgumentParser = commands.add_parser(
        "update", help="take a release of the agent, or say how the last one ended", description=DESCRIPTION
    )
    sub.add_argument("release", type=Path, nargs="?", metavar="FILE", help="the release; none: only say what is so")
    sub.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML; see docs/quickstart.md")
    sub.add_argument("--json", action="store_true", help="print JSON for scripts")
    sub.set_defaults(command=_update)


def _update(config: AgentConfig, options: argparse.Namespace) -> int:
    facts: dict[str, object] = {}
    try:
        if options.release is None:
            installed, report = read_installed(INSTALLED), read_report(ROOTS / "report")
            facts = {"installed": asdict(installed), "last_update": asdict(report) if report else None}
        else:
            facts = _spool(config, options.release)
    except OSError as error:
        raise ConfigError(
            f"the release cannot be taken: {error}", "name a release's file, and run this as the user anabranch"
        ) from None
    if options.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return 0
    for name, value in facts.items():
        said = ", ".join(f"{k} {v}" for k, v in value.items() if v != "") if isinstance(value, dict) else value
        sys.stdout.write(f"{name:<12} {said if said is not None else 'none'}\n")
    return 0


def _spool(config: AgentConfig, release: Path) -> dict[str, object]:
    if not has_updater():
        raise ConfigError(
            f"there is no {UPDATER} here", "install the agent by a newer kit: `python -m deploy wheelhouse`"
        )
    checked = spool_release(release, config.device.state_dir, config.gateway.public_key, config.device.fleet)
    manifest = checked.manifest
    return {
        "spooled": {"number": manifest.counter, "version": manifest.version, "digest": checked.digest},
        "next": "anabranch-update installs and tries it: journalctl -fu anabranch-update",
    }
