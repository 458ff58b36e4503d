"""`edge-agent data`: a look at the ring, and its end."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest

from edge_agent.__main__ import main
from edge_agent.config import load_config
from edge_agent.ring import Ring
from edge_agent.sensing import RingConfig
from tests.edge_agent.rig import FLEET_KEY

MARK = 0.708888828754425


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A device whose ring has 30 examples."""
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
        [device]
        id = "fan-1"
        fleet = "plant"
        state_dir = "state"
        [gateway]
        public_key = "{FLEET_KEY.public}"
        [data]
        source = "ring"
        [sensors]
        channels = [{{ name = "rms", topic = "fan/sensor/rms/state" }}]
        window = {{ count = 8 }}
        """
    )
    ring = Ring(tmp_path / "state/ring", load_config(path, {}).sensors.form, RingConfig())
    for number in range(30):
        ring.append(np.full((1, 8), MARK, np.float32), number % 2, 1_800_000_000.0 + number)
    ring.close()
    (tmp_path / "state/ring/counts.json").write_text('{"messages": 250, "not used": {"not a number": 10}}')
    return path


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_show_says_how_much_and_since_when(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of examples; never a number of an example."""
    assert run("data", "show", "--config", config) == 0
    said = capsys.readouterr().out
    assert "examples     30" in said
    assert "shape        1 x 8" in said
    assert "not used     10: not a number" in said
    assert "2027-01-15" in said
    assert run("data", "show", "--config", config, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["examples"], facts["shape"], facts["heard"]["messages"]) == (30, [1, 8], 250)
    assert "0.708" not in said + json.dumps(facts)


def test_forget_erases_everything(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are gone; a second time there is nothing to do."""
    directory = config.parent / "state/ring"
    assert run("data", "forget", "--config", config, "--yes") == 0
    assert "erased 30 examples" in capsys.readouterr().out
    assert list(directory.iterdir()) == []
    assert run("data", "forget", "--config", config, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 0
    assert run("data", "show", "--config", config) == 0
    assert "examples     0" in capsys.readouterr().out


def test_forget_asks(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can answer it erases nothing; `n` is an answer."""
    assert run("data", "forget", "--config", config) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, code in (("n", 1), ("", 1), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert run("data", "forget", "--config", config) == code
    assert "erased 30" in capsys.readouterr().out


def test_an_agent_that_runs_is_not_robbed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would write on what was erased: stop it first, or ask it by its gateway."""
    with (config.parent / "state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert run("data", "forget", "--config", config, "--yes") == 2
    assert "another agent runs" in capsys.readouterr().err
    assert len(list((config.parent / "state/ring").iterdir())) == 2


def test_a_folder_is_not_ours_to_erase(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor to count here."""
    text = config.read_text()
    config.write_text(text[: text.index("[data]")] + '[data]\npath = "."\n')
    for command in (("show",), ("forget", "--yes")):
        assert run("data", command[0], "--config", config, *command[1:]) == 2
        assert "there is no ring" in capsys.readouterr().err


def test_check_looks_at_the_ring_and_changes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a bundle that it does not fit, that is said."""
    from tests.edge_agent.rig import ROOT

    before = sorted((config.parent / "state").rglob("*"))
    bundle = ROOT / "anabranch/data/fan_vibration.bundle"
    assert run("check", "--config", config, "--bundle", bundle) == 2
    said = capsys.readouterr()
    assert "has examples of shape (1, 8); the model wants (200, 3)" in said.err
    assert run("check", "--config", config) == 2  # no broker
    assert "holds 30 examples" in capsys.readouterr().out
    assert sorted((config.parent / "state").rglob("*")) == before
