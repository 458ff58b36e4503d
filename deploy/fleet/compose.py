"""The agents of a fleet for Docker Compose; everything else is in deploy/compose/compose.yaml."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .specs import Container

COMPOSE_FILE = Path(__file__).parents[1] / "compose" / "compose.yaml"


def agents_file(containers: Iterable[Container]) -> str:
    """A compose file: a service for each agent that extends `agent`, and its volumes. JSON, which is YAML."""
    services: dict[str, Any] = {}
    volumes: dict[str, Any] = {}
    for container in containers:
        if container.role != "agent":
            continue
        services[container.member] = {
            "extends": {"file": str(COMPOSE_FILE), "service": "agent"},
            "scale": 1,
            "cpus": container.cpus,
            "mem_limit": f"{container.memory_mb}m",
            "memswap_limit": f"{container.memory_mb}m",
            "hostname": container.member,
            "volumes": [f"{v.name}:{v.path}:{'ro' if v.read_only else 'rw'}" for v in container.volumes],
        }
        volumes |= {v.name: {"external": True} for v in container.volumes}
    return json.dumps({"services": services, "volumes": volumes}, indent=2) + "\n"
