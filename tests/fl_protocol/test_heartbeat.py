"""A loop's heartbeat, and what `anabranch-health` says of it."""

import json
from pathlib import Path

import pytest

from fl_protocol.errors import ConfigError
from fl_protocol.heartbeat import BEAT_S, FILE, Heartbeat, look, main, path_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def beating(tmp_path: Path, clock: Clock) -> Heartbeat:
    return Heartbeat({"RUNTIME_DIRECTORY": f"{tmp_path}:/elsewhere"}, clock)


def test_a_loop_that_turns_with_its_broker_is_healthy(tmp_path: Path, clock: Clock, beating: Heartbeat) -> None:
    beating.beat(True)
    clock.now += 29
    assert look(tmp_path / FILE, clock=clock) == {"healthy": True, "why": "", "age_s": 29.0, "connected": True}


def test_a_loop_that_hangs_is_not(tmp_path: Path, clock: Clock, beating: Heartbeat) -> None:
    beating.beat(True)
    clock.now += 31
    assert look(tmp_path / FILE, clock=clock)["why"] == "the loop last turned 31 s ago; more than 30 is too long"


def test_a_heartbeat_of_the_last_boot_does_not_count(tmp_path: Path, clock: Clock, beating: Heartbeat) -> None:
    beating.beat(True)
    clock.now = 1.0  # the monotonic clock began again
    assert look(tmp_path / FILE, clock=clock)["healthy"] is False


def test_without_a_broker_it_says_since_when(tmp_path: Path, clock: Clock, beating: Heartbeat) -> None:
    beating.beat(True)
    clock.now += 10
    beating.beat(False)
    clock.now += 20
    beating.beat(False)
    assert look(tmp_path / FILE, clock=clock)["why"] == "no broker for 20 s"


def test_it_is_written_at_most_every_few_seconds_but_a_change_at_once(
    tmp_path: Path, clock: Clock, beating: Heartbeat
) -> None:
    def at() -> float:
        return json.loads((tmp_path / FILE).read_text())["at"]

    beating.beat(False)
    clock.now += BEAT_S - 0.1
    beating.beat(False)
    assert at() == 100.0
    beating.beat(True)
    assert at() == clock.now


def test_without_the_variable_nothing_is_kept() -> None:
    assert path_of({}) is None
    Heartbeat({}).beat(True)


def test_a_directory_that_cannot_be_written_stops_no_loop() -> None:
    Heartbeat({"RUNTIME_DIRECTORY": "/nowhere"}).beat(True)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"at": "x", "since": 0, "connected": true}'])
def test_what_is_no_heartbeat_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match="is no heartbeat"):
        look(tmp_path / FILE)


def test_the_command_ends_with_0_1_or_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert main([]) == 2
    assert main(["--directory", str(tmp_path)]) == 2
    assert "start the agent" in capsys.readouterr().err
    heartbeat = Heartbeat({"RUNTIME_DIRECTORY": str(tmp_path)})
    heartbeat.beat(False)
    assert main(["--directory", str(tmp_path)]) == 1
    heartbeat.beat(True)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    capsys.readouterr()
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
