"""Commands and desired configuration with real programs: mosquitto with TLS, the aggregator, an agent, and kill -9."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_protocol.broker import BrokerConfig
from fl_protocol.connecting import transport_to
from fl_protocol.messages import Desired, DeviceCommand
from fl_protocol.signing import SigningKey, seal
from fl_protocol.topics import Kind, build
from tests.support.gatehouse import FLEET, Gatehouse
from tests.support.peer import Peer
from tests.support.waiting import wait_until

DEVICE = "fan-01"
PAUSED = "paused by the operator"


@pytest.fixture
def house(tmp_path) -> Iterator[Gatehouse]:
    house = Gatehouse(tmp_path)
    yield house
    house.close()


def settled(house: Gatehouse) -> Path:
    """A device that is in and at work."""
    card = house.device("card", house.ticket(DEVICE))
    house.boot(card)
    wait_until(lambda: state(house).get("state") in ("ready", "init"), 30, "the device is there")
    return card


def ask(house: Gatehouse, *words: str) -> Any:
    """A command's JSON."""
    done = house.command(*words, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def command(house: Gatehouse, name: str, *words: str) -> Any:
    """Tell the device to do something, and wait for its end."""
    return ask(house, "device", "command", DEVICE, name, "--wait", *words)


def state(house: Gatehouse) -> Any:
    """The device's last word."""
    return next((row["state"] or {} for row in ask(house, "devices") if row["id"] == DEVICE), {})


def newest(house: Gatehouse) -> Any:
    """The command that was asked last."""
    return ask(house, "device", "commands", DEVICE)[0]


@pytest.mark.timeout(300)
def test_each_command_over_mutual_tls(house) -> None:
    """Done, answered, cleared: the broker retains nothing of it."""
    settled(house)
    report = command(house, "report")
    assert (report["status"], report["health"]["may_train"]) == ("successful", True)
    assert report["health"]["memory_mb"] > 10

    assert command(house, "pause", "--minutes", "30")["status"] == "successful"
    wait_until(lambda: state(house)["why"] == PAUSED, 10, "it says that it is paused")
    refused = command(house, "train-now")
    assert (refused["status"], refused["code"]) == ("rejected", "E_COMMAND")
    assert refused["why"] in ("no task", PAUSED)
    assert command(house, "resume")["status"] == "successful"
    wait_until(lambda: state(house)["why"] != PAUSED, 10, "it goes on")

    logs = command(house, "collect-logs", "--lines", "5")
    assert len(logs["lines"]) == 5
    assert any("command resume" in line for line in logs["lines"])
    forgotten = command(house, "forget-data")
    assert (forgotten["status"], forgotten["code"]) == ("rejected", "E_COMMAND")  # a folder is not ours to erase

    services = house.pki / "services"
    broker = BrokerConfig(
        host="127.0.0.1",
        port=house.service_port,
        ca=house.pki / "ca.pem",
        certificate=services / "aggregator.pem",
        key=services / "aggregator.key",
    )
    with Peer(transport_to(broker, "looker", session_expiry_s=0)) as looker:
        looker.connected()
        looker.transport.subscribe([(f"fl/1/{FLEET}/dev/{DEVICE}/#", 1)])
        desired = build(Kind.DESIRED, FLEET, device=DEVICE)
        looker.until(lambda: any(d.topic == desired for d in looker.deliveries), "what is retained")
        assert not [d.topic for d in looker.deliveries if "/cmd/" in d.topic]

        stranger, name = SigningKey(b"s" * 32), build(Kind.DEVICE_COMMAND, FLEET, device=DEVICE, name="pause", cid="x1")
        looker.transport.publish(
            name, seal(DeviceCommand(counter=99), stranger, FLEET, name)
        )  # it is not named: unheard
        forged = seal(Desired(commands={"x1": "pause"}, counter=10**6), stranger, FLEET, desired)
        looker.transport.publish(desired, forged)
        wait_until(lambda: "E_SIG" in house.log("card"), 10, "a forged list of commands is refused")
    assert "command pause x1" not in house.log("card")


@pytest.mark.timeout(300)
def test_a_pause_and_a_configuration_survive_kill_9_without_a_network(house) -> None:
    """Both are on the disk, and in force before anybody is reached."""
    card = settled(house)
    assert command(house, "pause")["status"] == "successful"
    configured = house.command("device", "configure", DEVICE, "health.state_s=0.5", "log.level=debug")
    assert configured.returncode == 0, configured.stderr
    wait_until(lambda: "configuration 1, from the gateway" in house.log("card"), 10, "it is in force")

    def reported() -> Any:
        return ask(house, "device", "configure", DEVICE)[0]["reported"]

    wait_until(lambda: (reported() or {}).get("revision") == 1, 10, "the gateway knows")
    bad = house.command("device", "configure", DEVICE, "health.state_s=soon")
    assert bad.returncode == 2
    assert "it is a number from" in bad.stderr

    house.kill("card")
    house.kill("broker")
    house.boot(card)
    wait_until(lambda: "configuration 1, the last good one" in house.log("card"), 30, "the last good one holds")
    assert house.log("card").count("command pause") == 2  # begun and ended, before the cut alone
    house.start_broker()
    wait_until(lambda: state(house).get("why") == PAUSED, 30, "it is paused still")
    assert command(house, "resume")["status"] == "successful"
    house.command("device", "configure", DEVICE, "health.state_s=", "log.level=")
    wait_until(lambda: reported()["configuration"] == {}, 10, "the device's own file again")


@pytest.mark.timeout(300)
def test_train_now_killed_in_the_middle_has_failed(house) -> None:
    """kill -9 while it waits for the model: told at the next start, and not begun again by what the broker brings."""
    card = settled(house)
    house.kill("card")
    make_task(house)  # while the device is off: it has no bundle yet
    asked = ask(house, "device", "command", DEVICE, "train-now", "--deadline", "300")
    house.processes["aggregator"].send_signal(signal.SIGSTOP)  # nobody serves the bundle: the command waits
    word = f"command train-now {asked['cid']}: "
    house.boot(card)
    wait_until(lambda: word + "executing" in house.log("card"), 30, "it is begun")
    wait_until(lambda: f"/cmd/train-now/{asked['cid']}'" in house.log("broker"), 30, "it is told")
    house.kill("card")
    house.boot(card)
    wait_until(lambda: word + "failed the agent ended in the middle of it" in house.log("card"), 30, "it has failed")
    house.processes["aggregator"].send_signal(signal.SIGCONT)
    ended = over(house, 30, "the gateway hears it")
    assert (ended["id"], ended["status"], ended["code"]) == (asked["cid"], "failed", "E_COMMAND")
    wait_until(lambda: state(house).get("state") == "sleeping", 60, "the model comes, and finds no examples")
    assert house.log("card").count(word + "executing") == 1
    refused = command(house, "train-now")
    assert (refused["status"], "no examples" in refused["why"]) == ("rejected", True)


@pytest.mark.timeout(300)
def test_a_device_that_was_away_hears_what_is_still_open(house) -> None:
    """Also after the gateway was killed; what was too late is never heard of."""
    card = settled(house)
    house.kill("card")
    late = ask(house, "device", "command", DEVICE, "report", "--deadline", "3")
    late_one = over(house, 30, "nobody answers")
    assert (late_one["id"], late_one["status"], late_one["code"]) == (late["cid"], "failed", "E_DEADLINE")
    asked = ask(house, "device", "command", DEVICE, "report", "--deadline", "60")
    house.kill("aggregator")
    house.start_aggregator()
    house.boot(card)
    done = over(house, 40, "a device that comes back hears it")
    assert (done["id"], done["status"]) == (asked["cid"], "successful")
    assert f"command report {late['cid']}" not in house.log("card")  # its time was over: nobody hears of it


def over(house: Gatehouse, seconds: float, what: str) -> Any:
    """The command that was asked last, once it has ended."""

    def ended() -> Any:
        record = newest(house)
        return None if record["status"] in ("asked", "executing") else record

    return wait_until(ended, seconds, what)


def make_task(house: Gatehouse) -> None:
    bundle = Path(__file__).parents[2] / "anabranch" / "data" / "fan_vibration.bundle"
    file = house.folder / "fan.toml"
    file.write_text(f'task = "fan"\nbundle = "{bundle}"\nstart = true\n[plan]\nbuffer = 1\n')
    done = house.command("task", "create", str(file))
    assert done.returncode == 0, done.stderr
