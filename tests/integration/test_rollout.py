"""Releases by roll-out: mosquitto with TLS, the aggregator, three agents under root's side, and kill -9."""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_protocol.agent_release import pack_release
from fl_protocol.keyfile import load_or_create_key
from tests.deploy.rig import deploy
from tests.support.fielded import BROKEN, WORKS, Fielded
from tests.support.gatehouse import FLEET, Gatehouse
from tests.support.releases import ARCH, manifest_of
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="anabranch-update is root's"),
]
NAMES = ("fan-01", "fan-02", "fan-03")
SLOW_S = 180.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Gatehouse]:
    house = Gatehouse(tmp_path)
    yield house
    house.close()


@pytest.fixture
def devices(house: Gatehouse) -> Iterator[list[Fielded]]:
    """Enrolled, and told so to the gateway."""
    devices = [Fielded(house, name) for name in NAMES]
    try:
        for device in devices:
            device.boot()
        for device in devices:
            device.wait_enrolled(SLOW_S)
        wait_until(lambda: releases(house) == dict.fromkeys(NAMES, 0), SLOW_S, "the gateway knows what they run")
        yield devices
    finally:
        for device in devices:
            device.close()


def ask(house: Gatehouse, *words: str, code: int | None = 0) -> Any:
    """A command's JSON."""
    done = house.command(*words, "--json")
    assert code is None or done.returncode == code, done.stderr
    return json.loads(done.stdout)


def releases(house: Gatehouse) -> dict[str, int | None]:
    """What each device says that it runs."""
    return {row["id"]: (row["info"] or {}).get("release") for row in ask(house, "devices")}


def status(house: Gatehouse) -> Any:
    return ask(house, "rollout", "status", code=None)


def add(house: Gatehouse, number: int, agent: bytes) -> Any:
    """A release of an agent, large enough to be kept in parts on the way."""
    key = load_or_create_key(house.folder / "data/fleet.key")
    files = {f"anabranch-{number}-py3-none-any.whl": agent + b"#" * 300_000, "pip-1-py3-none-any.whl": b"pip"}
    path = house.folder / f"agent-{number}.tar"
    path.write_bytes(pack_release(manifest_of(files, number, version=str(number)), files, key, FLEET))
    return ask(house, "release", "add", str(path))


def start(house: Gatehouse, number: int, *words: str) -> None:
    ask(house, "rollout", "start", str(number), "--rate", "all", "--deadline", "10m", *words)


def test_a_release_reaches_all_and_a_broken_one_only_the_first(house: Gatehouse, devices: list[Fielded]) -> None:
    """Wave by wave, over a kill of the gateway; the broken one is rolled back, and goes no further."""
    add(house, 7, WORKS)
    start(house, 7, "--groups", "1,100%")
    wait_until(lambda: any(d.spool.exists() or d.number for d in devices), SLOW_S, "the first has it")
    house.kill("aggregator")
    house.start_aggregator()
    done = wait_until(lambda: (s := status(house))["state"] != "running" and s, SLOW_S, "it is over")
    assert (done["state"], done["counts"]) == ("finished", {"successful": 3})
    assert [d["wave"] for d in done["devices"]] == [0, 1, 1]
    assert {d["why"] for d in done["devices"]} == {"release 7 (7) is installed"}
    assert [device.number for device in devices] == [7, 7, 7]
    wait_until(lambda: releases(house) == dict.fromkeys(NAMES, 7), SLOW_S, "they say so")
    first, *others = [d["device"] for d in done["devices"]]
    ended = {d["device"]: (d["asked_ms"], d["ended_ms"]) for d in done["devices"]}
    assert ended[first][1] <= min(ended[name][0] for name in others)

    add(house, 8, BROKEN)
    start(house, 8, "--groups", "1,100%", "--stop-at", "10%")
    stopped = wait_until(lambda: (s := status(house))["state"] != "running" and s, SLOW_S, "it stops")
    assert stopped["state"] == "stopped"
    assert stopped["counts"] == {"failed": 1, "skipped": 2}
    victim = stopped["devices"][0]
    assert "rolled back: the agent was not ready with its broker" in victim["why"]
    assert victim["device"] in stopped["why"]
    assert [device.number for device in devices] == [7, 7, 7]
    assert [device.name for device in devices if "this agent does not start" in device.log] == [victim["device"]]
    shown = house.command("rollout", "status")
    assert shown.returncode == 1
    assert victim["device"] in shown.stdout
    done = house.command("device", "command", victim["device"], "report", "--wait", "--json")
    assert json.loads(done.stdout)["status"] == "successful"  # the one before works


def test_a_device_that_is_off_gets_it_when_it_comes_back(house: Gatehouse, devices: list[Fielded]) -> None:
    """Unless the roll-out was stopped: then it never hears of it."""
    add(house, 7, WORKS)
    off = devices[2]
    off.systemctl("stop")
    start(house, 7)
    wait_until(lambda: status(house)["counts"] == {"asked": 1, "successful": 2}, SLOW_S, "it waits for one")
    assert status(house)["state"] == "running"
    off.systemctl("start")
    done = wait_until(lambda: (s := status(house))["state"] != "running" and s, SLOW_S, "it is over")
    assert (done["state"], off.number) == ("finished", 7)

    add(house, 9, WORKS)
    off.systemctl("stop")
    start(house, 9, "--devices", off.name)
    wait_until(lambda: status(house)["counts"] == {"asked": 1}, SLOW_S, "it is asked")
    ask(house, "rollout", "stop")
    off.systemctl("start")
    report = ask(house, "device", "command", off.name, "report", "--wait", "--deadline", "120")
    assert report["status"] == "successful"
    assert (status(house)["counts"], off.number) == ({"skipped": 1}, 7)
    assert off.log.count("command update-agent") == 3  # begun, noted, ended: of the first alone


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_thing(house: Gatehouse, tmp_path: Path) -> None:
    """Wheels from PyPI, venv, pip and our own wheel: an update that works, and one whose agent ends when it starts."""
    kit = tmp_path / "kit"
    python = ".".join(map(str, sys.version_info[:2]))
    made = deploy("wheelhouse", kit, "--arch", ARCH, "--python", python, timeout=600)
    assert made.returncode == 0, made.stderr
    pair = [Fielded(house, name, kit) for name in NAMES[:2]]
    try:
        for device in pair:
            device.boot()
        known = dict.fromkeys(NAMES[:2], 0)
        wait_until(lambda: releases(house) == known, SLOW_S, "they are in")
        make = ("release", "make", kit, "--base", kit, "--config", house.config)
        assert deploy(*make, "--number", "7", "--out", tmp_path / "7.tar").returncode == 0
        ask(house, "release", "add", str(tmp_path / "7.tar"))
        start(house, 7, "--groups", "1,100%")
        done = wait_until(lambda: (s := status(house))["state"] != "running" and s, 600, "it is over")
        assert (done["state"], done["counts"]) == ("finished", {"successful": 2}), done
        wait_until(lambda: releases(house) == dict.fromkeys(NAMES[:2], 7), SLOW_S, "they say so")
        assert {str((device.opt / "venv").readlink()) for device in pair} == {"b"}

        break_agent(kit)
        assert deploy(*make[:3], *make[5:], "--number", "8", "--out", tmp_path / "8.tar").returncode == 0
        ask(house, "release", "add", str(tmp_path / "8.tar"))
        start(house, 8)
        done = wait_until(lambda: (s := status(house))["state"] != "running" and s, 600, "it stops")
        assert (done["state"], done["counts"]) == ("stopped", {"failed": 1, "skipped": 1}), done
        assert "rolled back: the agent was not ready with its broker" in done["why"]
        assert [device.number for device in pair] == [7, 7]
        wait_until(lambda: releases(house) == dict.fromkeys(NAMES[:2], 7), SLOW_S, "they say so")
    finally:
        for device in pair:
            device.close()


def break_agent(kit: Path) -> None:
    """Our wheel of another kit, whose agent answers `--version` and ends when it runs."""
    (ours,) = (kit / "wheels").glob("anabranch-*.whl")
    with zipfile.ZipFile(ours) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    files["edge_agent/service.py"] += b'\n\ndef _ends(*_):\n    raise SystemExit("broken")\n\n\nService.run = _ends\n'
    with zipfile.ZipFile(ours, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    sums = kit / "wheels/SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines(keepends=True) if not line.endswith(f"{ours.name}\n")]
    sums.write_text("".join(lines) + f"{hashlib.sha256(ours.read_bytes()).hexdigest()}  {ours.name}\n")


def test_the_shelf(house: Gatehouse) -> None:
    """Only what the fleet's key signed; one that is needed stays."""
    kept = add(house, 7, WORKS)
    listed = ask(house, "release", "list")
    assert (listed["releases"], listed["damaged"]) == ([kept], {})
    forged = house.folder / "agent-7.tar"
    data = bytearray(forged.read_bytes())
    data[100_000] ^= 1
    forged.write_bytes(data)
    done = house.command("release", "add", str(forged))
    assert (done.returncode, "E_SHA" in done.stderr) == (2, True)
    none = house.command("rollout", "start", "7")
    assert (none.returncode, "for no device" in none.stderr) == (2, True)
    assert house.command("rollout", "start", "8").returncode == 2
    path = house.folder / "data/agent-releases" / kept["sha256"]
    path.write_bytes(bytes(data))
    assert list(ask(house, "release", "list")["damaged"]) == [kept["sha256"]]
    assert ask(house, "release", "remove", kept["sha256"]) == {"removed": kept["sha256"]}
    assert not list(path.parent.iterdir())
