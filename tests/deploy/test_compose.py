"""The compose file: it parses, is as hard as what the SDK makes, and agents fit into it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.fleet.compose import COMPOSE_FILE, agents_file
from deploy.fleet.profiles import PROFILES
from deploy.fleet.specs import IMAGES, agent_container, broker_container, create_options, gateway_container

AGENT = agent_container("fans", "fan-20", PROFILES["pi-4"], {"agent.toml": b"x"}, {})


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


@pytest.mark.parametrize("service", ["broker", "gateway", "agent"])
def test_a_service_is_hardened_as_the_sdk_does_it(stack: dict[str, Any], service: str) -> None:
    made, options = stack["services"][service], create_options(AGENT, 64)
    assert made["read_only"] is options["read_only"] is True
    assert made["cap_drop"] == options["cap_drop"] == ["ALL"]
    assert made["security_opt"] == options["security_opt"]
    assert made["user"] == options["user"] == "10001:10001"
    assert made["tmpfs"] == [f"{path}:{flags}" for path, flags in options["tmpfs"].items()]
    assert made["pids_limit"] == options["pids_limit"]
    assert made["mem_limit"] == made["memswap_limit"]
    assert made["image"] == IMAGES[service]
    assert made["healthcheck"]["test"]


@pytest.mark.parametrize("container", [broker_container("fans", {}), gateway_container("fans", {}, {})])
def test_broker_and_gateway_have_the_same_volumes_either_way(stack: dict[str, Any], container: Any) -> None:
    named = stack["volumes"]
    mounted = {}
    for line in stack["services"][container.member]["volumes"]:
        volume, path, *mode = line.split(":")
        name = named[volume]["name"].replace("${ANABRANCH_FLEET:-fans}", "fans")
        mounted[name] = (path, mode == ["ro"])
    assert mounted == {v.name: (v.path, v.read_only) for v in container.volumes}
    assert all(volume["external"] for volume in named.values())


def test_agents_extend_the_one_that_never_runs(stack: dict[str, Any]) -> None:
    agents = yaml.safe_load(agents_file([broker_container("fans", {}), AGENT]))
    (service,) = agents["services"].values()
    assert Path(service["extends"]["file"]) == COMPOSE_FILE
    assert service["extends"]["service"] == "agent"
    assert (stack["services"]["agent"]["scale"], service["scale"]) == (0, 1)
    assert (service["cpus"], service["mem_limit"]) == (0.3, "1792m")
    assert service["volumes"] == ["fans-fan-20-config:/etc/anabranch:ro", "fans-fan-20-state:/var/lib/anabranch:rw"]
    assert set(agents["volumes"]) == {"fans-fan-20-config", "fans-fan-20-state"}
