"""`anabranch demo` as a person runs it: real processes over a real broker, faults included, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from anabranch.datasets.fan_vibration import load_fan
from tests.support.waiting import wait_until

DEMO = [sys.executable, "-m", "anabranch", "demo"]
ROOT = Path(__file__).parents[2]
LIMIT_S = 110


def environment(**changes: str) -> dict[str, str]:
    """Ours, with the checkout on the path of every program."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def demo(output: Path, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A finished demo."""
    command = [*DEMO, "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment(**changes))


def tool(*command: str) -> list[object] | dict[str, object]:
    """What one of the programs prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--json"], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def programs_of(folder: Path) -> list[str]:
    """Command lines of all processes that work on `folder`, the demo itself left out."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if any(str(folder).encode() in word for word in words) and b"demo" not in words:
            found.append(b" ".join(words).decode())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small fleet with every fault, the gateway's included: (folder, summary, what was printed on the way)."""
    folder = tmp_path_factory.mktemp("run") / "demo"
    done = demo(folder, "--devices", "5", "--versions", "20", "--seed", "3", "--kill-gateway", "--keep", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_everything_happens_and_every_version_is_released(run):
    """Killed, back, late, gone for good, and the gateway killed: training goes on to its end."""
    _, summary, _ = run
    deeds = [happening["deed"] for happening in summary["happenings"]]
    assert sorted(deeds) == ["join", "kill", "kill gateway", "leave", "restart", "restart gateway"]
    assert summary["versions"] == 20
    assert summary["problems"] == []
    assert len([d for d in summary["cast"].values() if d]) == 4


def test_no_accepted_update_is_lost_or_counted_twice(run):
    """The store and the devices' own ledgers tell the same story, over two kill -9."""
    folder, summary, _ = run
    assert summary["ledgers"]["agree"]
    counted = summary["updates"]["disposals"]["counted"]
    assert counted == 20 * summary["plan"]["buffer"]
    assert sum(summary["updates"]["by_device"].values()) == counted
    accepted = 0
    for device in summary["updates"]["by_device"]:
        ledger = tool("edge_agent", "ledger", "--config", str(folder / device / "agent.toml"))
        accepted += sum(row["verdict"] == "accepted" for row in ledger)
    assert summary["updates"]["verdicts"]["accepted"] - summary["ledgers"]["unheard"] <= accepted
    assert accepted <= summary["updates"]["verdicts"]["accepted"]


def test_every_release_is_made_again_bit_for_bit(run):
    """Also by the program that an operator has."""
    folder, summary, _ = run
    assert summary["replay"] == {"releases": 20, "differ": []}
    replay = tool("broker_aggregator", "replay", "fan-vibration", "--config", str(folder / "gateway.toml"))
    assert replay["differ"] == []
    assert replay["releases"] == 20


def test_the_exported_models_run_in_a_stock_onnxruntime_and_reach_what_is_said(run):
    """int8 and float: their accuracy on the test split is that of the last version."""
    _, summary, _ = run
    fans = {fan: load_fan(int(fan.removeprefix("fan-"))).test for fan in summary["accuracy"]["by_fan"]}
    for name in ("int8", "float"):
        session = onnxruntime.InferenceSession(summary["model"][name], providers=["CPUExecutionProvider"])
        right = [(session.run(["logits"], {"x": x})[0].argmax(1) == y).mean() for x, y in fans.values()]
        reached = sum(right) / len(right)
        if name == "int8":
            assert reached == pytest.approx(summary["accuracy"]["by_version"]["20"])
        assert reached > 0.5


def test_the_model_was_learnt(run):
    """Twenty versions of a small fleet are far above where it began, a third."""
    _, summary, _ = run
    accuracy = summary["accuracy"]
    assert accuracy["federated"] > accuracy["by_version"]["0"] + 0.2
    assert accuracy["pooled"] > 0.9
    assert accuracy["alone"] < accuracy["pooled"]
    assert summary["steps"]["alone"] == summary["steps"]["federated"] // 5


def test_the_report_stands_alone(run):
    """One page with its figures inside; nothing is fetched from anywhere."""
    folder, summary, _ = run
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="http', page)
    assert not re.search(r"\$\{?[a-z]", page), "a placeholder was left"
    for fan in summary["accuracy"]["by_fan"]:
        assert fan in page
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_way_is_told_and_how_to_watch(run):
    """Without a terminal: plain lines; the commands name the real port and fleet."""
    _, summary, said = run
    assert f"broker: mosquitto at 127.0.0.1:{summary['broker']['port']}" in said
    for command in summary["watch"]:
        assert f"-p {summary['broker']['port']} " in command
        assert command in said
    assert f"{summary['cast']['killed']} killed in mid-training (kill -9)" in said
    assert re.search(r"version \d+, validation accuracy", said)


def test_nothing_is_left_running(run):
    """No process of the run, after a good end."""
    folder, _, _ = run
    assert programs_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_every_process_and_says_what_was_reached(tmp_path, number):
    """From the middle of the training: exit code 130, nothing left running, nothing left lying about."""
    folder = tmp_path / "demo"
    command = [*DEMO, "--devices", "3", "--versions", "100000", "--output", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        said = ""
        for line in process.stdout:
            said += line
            if "training: version" in line:
                break
        assert len(programs_of(folder)) >= 4, said
        process.send_signal(number)
        said += process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert re.search(r"stopped: reached version \d+.*every process has ended", said)
    assert programs_of(folder) == []
    assert not folder.exists()


def test_kill_9_of_the_demo_leaves_no_process(tmp_path):
    """Nobody had time to say goodbye, and still all are gone."""
    folder = tmp_path / "demo"
    command = [*DEMO, "--devices", "2", "--output", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment()) as process:
        wait_until(lambda: len(programs_of(folder)) >= 3, 60, "broker, gateway and an agent run")
        process.kill()
    wait_until(lambda: not programs_of(folder), 10, "all are gone")


def test_without_mosquitto_the_demo_says_what_amqtt_costs(tmp_path):
    """A PATH without mosquitto: the whole way works on the pure-Python broker, and its price is named."""
    folder = tmp_path / "demo"
    done = demo(folder, "--devices", "3", "--versions", "6", "--json", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["broker"]["name"] == "amqtt"
    assert "3.1.1 only" in summary["broker"]["cost"]
    assert "not durable" in done.stderr
    assert summary["ledgers"]["agree"]
    assert sorted(path.name for path in folder.iterdir()) == ["model", "report.html", "summary.json"]
    assert programs_of(folder) == []


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--devices", "1"], "--devices 1", "choose 2..17"),
        (["--devices", "18"], "--devices 18", "choose 2..17"),
        (["--quick", "--devices", "4"], "--quick knows the whole fleet", "leave out --devices"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_a_hint(tmp_path, options, message, hint):
    """Exit code 2, no traceback, nothing started."""
    done = demo(tmp_path / "demo", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert f"hint: {hint}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists()


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    """Somebody's files may lie there."""
    (tmp_path / "precious").write_text("data")
    done = demo(tmp_path)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
