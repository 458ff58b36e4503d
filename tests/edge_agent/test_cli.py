"""`edge-agent` as a person meets it: every mistake has one clear message, a hint and exit code 2, never a traceback."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch.datasets.fan_vibration import load_fan
from edge_agent.__main__ import main
from edge_agent.config import load_config
from edge_agent.events import LocalVector, PendingUpdate, SaveUpdate, Settle
from edge_agent.outbox import Outbox
from fl_protocol.errors import ConfigError
from fl_protocol.messages import DeviceState, Health, Prediction, Result
from fl_protocol.mqtt import MqttTransport
from fl_protocol.signing import SigningKey
from tests.edge_agent.rig import BUNDLE_BYTES, FLEET_KEY, ROOT
from tests.edge_agent.scripted import ScriptedGateway
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.waiting import wait_until

DEVICE, FLEET = "fan-20", "plant"


def write_config(directory: Path, port: int, extra: str = "", data: str = "data") -> Path:
    """A device's configuration with a broker on this machine."""
    path = directory / "device.toml"
    path.write_text(
        f"""
        [device]
        id = "{DEVICE}"
        fleet = "{FLEET}"
        state_dir = "state"
        [broker]
        host = "127.0.0.1"
        port = {port}
        [gateway]
        public_key = "{FLEET_KEY.public}"
        [data]
        path = "{data}"
        [inference]
        interval_s = 0.2
        [health]
        measure_s = 0.2
        publish_s = 0.2
        state_s = 0.0
        {extra}
        """
    )
    return path


def fill(directory: Path) -> None:
    """One fan's examples, as files."""
    directory.mkdir()
    splits = load_fan(20)
    np.savez(directory / "train.npz", x=splits.train[0][::3], y=splits.train[1][::3])
    np.savez(directory / "validation.npz", x=splits.validation[0], y=splits.validation[1])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "hint: " in said
    assert "Traceback" not in said
    return said


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("[gate]\nmin_batery_pct = 3", "did you mean `gate.min_battery_pct`?"),
        ("[gat]\nx = 1", "did you mean `gate`?"),
        ("[training]\nduty_cycle = 0", "training.duty_cycle"),
        ('[training]\nthreads = "two"', "training.threads"),
        ('[gate]\nstart = "25:00"', "gate.start"),
        ("[training", "is not TOML"),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, expected: str) -> None:
    """Unknown keys with a suggestion; wrong values with the field."""
    assert expected in mistake(capsys, "run", "--config", str(write_config(tmp_path, 1883, extra)))


def test_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path that was looked for."""
    assert "nothing.toml" in mistake(capsys, "check", "--config", str(tmp_path / "nothing.toml"))


def test_paths_start_at_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    """So that a folder can be moved, and a container configured."""
    path = write_config(tmp_path, 1883, '[log]\nlevel = "debug"')
    config = load_config(path, {"ANABRANCH_BROKER__HOST": "gw.local", "ANABRANCH_DEVICE__ID": "other"})
    assert config.device.state_dir == tmp_path / "state"
    assert config.data.path == tmp_path / "data"
    assert (config.broker.address, config.device.id) == (("gw.local", 1883), "other")
    absolute = load_config(write_config(tmp_path, 0, data="/srv/data"), {})
    assert absolute.data.path == Path("/srv/data")
    assert absolute.broker.address == ("127.0.0.1", 1883)


def test_tls_is_on_where_there_is_a_ca(tmp_path: Path) -> None:
    """Port 8883 then; files that are none are the operator's mistake."""
    path = write_config(tmp_path, 0)
    text = path.read_text().replace("port = 0", 'ca = "ca.pem"')
    path.write_text(text)
    config = load_config(path, {})
    assert config.broker.address[1] == 8883
    with pytest.raises(ConfigError, match="TLS"):
        config.broker.tls()
    path.write_text(text.replace("ca =", "certificate ="))
    with pytest.raises(ConfigError, match="need `ca`"):
        load_config(path, {}).broker.tls()


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    """Not in a repr, which a log or a traceback may show."""
    path = write_config(tmp_path, 1883)
    path.write_text(path.read_text().replace("[broker]", '[broker]\npassword = "hunter2"'))
    config = load_config(path, {})
    assert config.broker.password == "hunter2"
    assert "hunter2" not in repr(config)


# --- the small commands ------------------------------------------------------------------------------------------


def test_identity_makes_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same id, key and incarnation ever after; the key's file is the owner's alone."""
    path = write_config(tmp_path, 1883)
    said = []
    for _ in range(2):
        assert main(["identity", "--config", str(path), "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    key = tmp_path / "state/device.key"
    assert said[0]["public_key"] == SigningKey(bytes.fromhex(key.read_text())).public
    assert key.stat().st_mode & 0o777 == 0o600
    assert main(["identity", "--config", str(path)]) == 0
    assert said[0]["public_key"] in capsys.readouterr().out


def test_the_ledger_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON and as text."""
    path = write_config(tmp_path, 1883)
    outbox = Outbox(tmp_path / "state/outbox.sqlite3")
    outbox.start()
    vector = np.zeros(3, np.float32)
    update = PendingUpdate("t", "a" * 16, 1, 4, "f" * 32, 9, b"x", vector, vector)
    outbox.apply(SaveUpdate(update, LocalVector("f" * 32, vector)))
    result = Result(task="t", incarnation="a" * 16, seq=1, verdict="rejected", code="E_NAN", counter=1)
    outbox.apply(Settle(update, result, "results"))
    assert main(["ledger", "--config", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["seq"], row["verdict"], row["code"], row["base_version"]) == (1, "rejected", "E_NAN", 4)
    assert main(["ledger", "--config", str(path)]) == 0
    assert "verdict rejected" in capsys.readouterr().out
    outbox.close()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` needs no configuration."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("edge-agent ")


def test_check_says_what_is_wrong_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No data and no broker: both are said, with what to do, and nothing is made."""
    path = write_config(tmp_path, free_port())
    said = mistake(capsys, "check", "--config", str(path))
    assert "data folder" in said
    assert "cannot use the broker at 127.0.0.1" in said
    assert not (tmp_path / "state").exists()


def test_check_finds_everything_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mosquitto: Mosquitto
) -> None:
    """The broker's version and limit, the data held against a bundle."""
    path = write_config(tmp_path, mosquitto.port)
    fill(tmp_path / "data")
    assert main(["check", "--config", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "answers, MQTT 5" in said["broker"]
    assert "2 files" in said["data"]
    bundle = ROOT / "anabranch/data/fan_vibration.bundle"
    assert main(["check", "--config", str(path), "--bundle", str(bundle)]) == 0
    assert "they fit fan_vibration.bundle" in capsys.readouterr().out
    (tmp_path / "data/bad.csv").write_text("1,2,3\n")
    assert "bad.csv" in mistake(capsys, "check", "--config", str(path), "--bundle", str(bundle))


# --- the process -------------------------------------------------------------------------------------------------


class Running:
    """`edge-agent run` as a process; its log so far in `log`."""

    def __init__(self, config: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(config), *arguments]
        self.file = config.parent / "log.txt"
        with self.file.open("w") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, cwd=config.parent)

    @property
    def log(self) -> str:
        return self.file.read_text()

    def end(self) -> int:
        """SIGTERM; the exit code, which comes within three seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(3)


@pytest.fixture
def running() -> Iterator[list[Running]]:
    """Processes that end with the test."""
    processes: list[Running] = []
    yield processes
    for process in processes:
        process.process.kill()
        process.process.wait()


def test_an_unreachable_broker_is_tried_again_and_sigterm_ends_it(tmp_path: Path, running: list[Running]) -> None:
    """Said on the log with the address; exit code 0."""
    port = free_port()
    agent = Running(write_config(tmp_path, port))
    running.append(agent)
    wait_until(lambda: f"cannot reach the broker at 127.0.0.1:{port}" in agent.log, 20, "a log line")
    assert "trying again in" in agent.log
    assert "data folder" in agent.log
    assert agent.end() == 0


def test_one_agent_a_state_directory(tmp_path: Path, running: list[Running]) -> None:
    """A second one ends with exit code 2."""
    config = write_config(tmp_path, free_port())
    running.append(Running(config))
    wait_until(lambda: "start 1" in running[0].log, 20, "a start")
    second = subprocess.run(
        [sys.executable, "-m", "edge_agent", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=20,
    )
    assert second.returncode == 2
    assert "another agent runs" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_agent_over_a_real_broker(tmp_path: Path, mosquitto: Mosquitto, running: list[Running]) -> None:
    """It learns, survives a killed broker and its own kill -9, predicts, and says goodbye."""
    config = write_config(tmp_path, mosquitto.port)
    fill(tmp_path / "data")
    assert main(["identity", "--config", str(config)]) == 0
    key = SigningKey(bytes.fromhex((tmp_path / "state/device.key").read_text())).public
    transport = MqttTransport("127.0.0.1", mosquitto.port, "gateway", reconnect_min_s=0.1, reconnect_max_s=0.5)
    gateway = ScriptedGateway(transport, BUNDLE_BYTES, FLEET_KEY, FLEET, {DEVICE: key})

    def versions(count: int) -> bool:
        gateway.step()
        return gateway.version >= count

    try:
        agent = Running(config, "--json")
        running.append(agent)
        wait_until(lambda: versions(3), 40, "three versions")
        mosquitto.kill()
        mosquitto.restart()
        count = gateway.version
        wait_until(lambda: versions(count + 2), 60, "versions after the broker's restart")
        agent.process.kill()
        agent.process.wait()
        count = gateway.version
        agent = Running(config, "--json")
        running.append(agent)
        wait_until(lambda: versions(count + 2), 40, "versions after the agent's restart")
        wait_until(lambda: versions(0) and gateway.of(Prediction), 20, "a prediction")
        assert agent.end() == 0

        def said_goodbye() -> bool:
            gateway.step()
            last = gateway.of(DeviceState)[-1]
            return isinstance(last, DeviceState) and last.state == "disconnected"

        wait_until(said_goodbye, 10, "goodbye")
        assert all(json.loads(line)["level"] for line in agent.log.splitlines())
        accepted = [seq for _, _, seq in gateway.accepted]
        assert accepted == sorted(set(accepted))
    finally:
        transport.close()


def test_killed_in_mid_training_an_agent_begins_that_training_again(
    tmp_path: Path, mosquitto: Mosquitto, running: list[Running]
) -> None:
    """kill -9 between two steps, twice: nothing half-written on the disk, no number spent, the same version trained."""
    config = write_config(tmp_path, mosquitto.port, "[training]\nduty_cycle = 0.001")
    fill(tmp_path / "data")
    assert main(["identity", "--config", str(config)]) == 0
    key = SigningKey(bytes.fromhex((tmp_path / "state/device.key").read_text())).public
    transport = MqttTransport("127.0.0.1", mosquitto.port, "gateway")
    gateway = ScriptedGateway(transport, BUNDLE_BYTES, FLEET_KEY, FLEET, {DEVICE: key})

    def trains(boot: int) -> bool:
        gateway.step()
        told = [message for message in gateway.of(DeviceState) if isinstance(message, DeviceState)]
        return any((m.state, m.boot, m.version) == ("training", boot, 0) for m in told)

    def updated() -> bool:
        gateway.step()
        return bool(gateway.updates)

    try:
        for boot in (1, 2):
            agent = Running(config)
            running.append(agent)
            wait_until(lambda boot=boot: trains(boot), 40, "a training")  # type: ignore[misc]
            agent.process.kill()
            agent.process.wait()
            for path in (tmp_path / "state/objects").iterdir():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            database = sqlite3.connect(tmp_path / "state/outbox.sqlite3")
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("SELECT count(*) FROM updates").fetchone() == (0,)
            database.close()
        running.append(Running(write_config(tmp_path, mosquitto.port)))
        wait_until(updated, 40, "an update")
        assert (gateway.updates[0].base_version, gateway.updates[0].seq) == (0, 1)
    finally:
        transport.close()


def test_an_agent_needs_less_than_90_mb(tmp_path: Path, mosquitto: Mosquitto, running: list[Running]) -> None:
    """Peak resident memory (VmHWM, as it reports it) of one that trains and predicts; idle it is the interpreter's."""
    config = write_config(tmp_path, mosquitto.port)
    fill(tmp_path / "data")
    transport = MqttTransport("127.0.0.1", mosquitto.port, "gateway")
    assert main(["identity", "--config", str(config)]) == 0
    key = SigningKey(bytes.fromhex((tmp_path / "state/device.key").read_text())).public
    gateway = ScriptedGateway(transport, BUNDLE_BYTES, FLEET_KEY, FLEET, {DEVICE: key})
    try:
        running.append(Running(config))

        def done() -> list[float]:
            gateway.step()
            trained = gateway.version >= 10 and gateway.of(Prediction)
            peaks = [message.peak_memory_mb for message in gateway.of(Health) if isinstance(message, Health)]
            return peaks if trained else []

        peaks = wait_until(done, 60, "ten versions and a prediction")
        wait_until(lambda: len(done()) > len(peaks), 20, "health after that")
        assert 40 < max(done()) < 90
    finally:
        transport.close()


def test_importing_the_agent_is_light() -> None:
    """No torch, no workshop, no gateway, no rich, no typer; and no onnxruntime before a graph is loaded."""
    script = "import sys, edge_agent.__main__; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert "edge_agent" in roots
    heavy = "torch models broker_aggregator anabranch rich typer click onnx onnxruntime"
    assert not roots & set(heavy.split())
