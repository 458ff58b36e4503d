"""A fleet as it is now: what the engine knows of each container, and what the gateway's store knows of each device."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from docker.errors import APIError, NotFound
from docker.models.containers import Container as Running

from fl_protocol.errors import ConfigError

from .engine import Engine
from .members import GATEWAY_CONFIG_FILE
from .specs import GATEWAY, ROLE_LABEL

AT_ONCE = 8  # figures are asked for by so many threads: the engine takes a second for each
_MB = 2**20


@dataclass(frozen=True, kw_only=True)
class MemberStatus:
    """One member. Figures are None where it does not run; `peak_mb` is the program's largest resident set."""

    id: str
    role: str
    state: str  # the engine's word: running, paused, exited ...; `partitioned` where it runs without a network
    health: str  # of the image's health check: healthy, unhealthy, starting; empty where nothing was looked at
    restarts: int
    memory_mb: float | None
    limit_mb: float
    peak_mb: float | None
    cpu_s: float | None
    updates: int | None = None  # of a device: those that the gateway gave a verdict, and those that a version counts
    counted: int | None = None
    says: str = ""  # of a device: the state that it told last


def fleet_status(engine: Engine) -> dict[str, Any]:
    """Members and tasks, for people and for scripts. Raises `ConfigError` where there is no such fleet."""
    there = engine.members()
    if not there:
        raise ConfigError(
            f"there is no fleet {engine.fleet}", f"`python -m deploy fleet up --name {engine.fleet}` makes one"
        )
    tasks, devices, why = _of_gateway(engine, there)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked = pool.map(lambda item: _look(engine, *item), there.items())
        members = [_with_device(member, devices.get(member["id"])) for member in looked]
    return {"fleet": engine.fleet, "members": members, "tasks": tasks, "gateway_why": why}


def memory_mb(stats: Mapping[str, Any]) -> float | None:
    """Memory in use without the page cache, which the kernel takes back at need; both versions of control groups."""
    memory = stats.get("memory_stats", {})
    if "usage" not in memory:
        return None
    details = memory.get("stats", {})
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    used: int = memory["usage"] - cache
    return round(used / _MB, 1)


def peak_mb(proc_status: str) -> float | None:
    """VmHWM of /proc/PID/status."""
    for line in proc_status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def state_of(container: Running, connected: bool) -> str:
    """The engine's word, or `partitioned`."""
    return "partitioned" if container.status == "running" and not connected else container.status


def _look(engine: Engine, name: str, container: Running) -> dict[str, Any]:
    state = container.attrs["State"]
    stats: Mapping[str, Any] = {}
    peak = None
    try:
        if container.status in ("running", "paused"):
            stats = _stats(container)
        if container.status == "running":
            peak = peak_mb(engine.run(name, ["cat", "/proc/1/status"])[1])
    except (NotFound, APIError, ConfigError):  # it ended meanwhile
        stats = {}
    cpu = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
    return asdict(
        MemberStatus(
            id=name,
            role=container.labels[ROLE_LABEL],
            state=state_of(container, engine.connected(container)),
            health=state.get("Health", {}).get("Status", "") if container.status == "running" else "",
            restarts=container.attrs["RestartCount"],
            memory_mb=memory_mb(stats),
            limit_mb=container.attrs["HostConfig"]["Memory"] / _MB,
            peak_mb=peak,
            cpu_s=None if cpu is None else round(cpu / 1e9, 1),
        )
    )


def _stats(container: Running) -> Mapping[str, Any]:
    said: Any = container.stats(stream=False, one_shot=True)  # typed as a stream too
    return dict(said)


def _of_gateway(engine: Engine, there: Mapping[str, Running]) -> tuple[list[Any], dict[str, Any], str]:
    """Tasks, devices by id, and why there are none."""
    gateway = there.get(GATEWAY)
    if gateway is None or gateway.status != "running":
        return [], {}, f"the gateway is {gateway.status if gateway else 'not there'}"
    found = []
    for what in ("status", "devices"):
        code, out, err = engine.run(GATEWAY, ["broker-aggregator", what, "--config", GATEWAY_CONFIG_FILE, "--json"])
        if code:
            return [], {}, err.strip()
        found.append(json.loads(out))
    tasks = [{key: task[key] for key in ("task", "state", "version", "metric", "value", "best")} for task in found[0]]
    return tasks, {device["id"]: device for device in found[1]}, ""


def _with_device(member: dict[str, Any], device: Mapping[str, Any] | None) -> dict[str, Any]:
    if device is None:
        return member
    says = (device["state"] or {}).get("state", "")
    return {**member, "updates": device["updates"], "counted": device["counted"], "says": says}
