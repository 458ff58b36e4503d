"""`edge-agent update`: what is said of the last update, and a release by hand."""

import json
from pathlib import Path

import pytest

from edge_agent import update_command, updating
from edge_agent.__main__ import main
from fl_protocol.agent_release import pack_release
from tests.edge_agent.rig import FLEET_KEY
from tests.edge_agent.test_cli import FLEET, write_config
from tests.support.releases import manifest_of


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's configuration; root's side lies in `root`."""
    monkeypatch.setattr(update_command, "INSTALLED", tmp_path / "root/release")
    monkeypatch.setattr(update_command, "ROOTS", tmp_path / "root")
    (tmp_path / "root").mkdir()
    (tmp_path / "data").mkdir()
    return write_config(tmp_path, 1883)


def said(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["update", *words, "--config", str(config)]) == 0
    return capsys.readouterr().out


def test_before_any_update(config: Path, capsys) -> None:
    """The kit runs."""
    assert said(config, capsys) == "installed    number 0\nlast_update  none\n"
    facts = json.loads(said(config, capsys, "--json"))
    assert facts == {"installed": {"number": 0, "digest": "", "version": ""}, "last_update": None}


def test_after_one_that_was_rolled_back(config: Path, capsys) -> None:
    """What runs, and why the other does not."""
    (config.parent / "root/release").write_text("5 " + "ab" * 32 + " 0.1.0\n")
    (config.parent / "root/report").write_text("failed\n6\n0.2.0\nrolled back: not ready\n")
    text = said(config, capsys)
    assert "number 5" in text
    assert "state failed, number 6, version 0.2.0, why rolled back: not ready" in text
    facts = json.loads(said(config, capsys, "--json"))
    assert facts["last_update"] == {"state": "failed", "number": 6, "version": "0.2.0", "why": "rolled back: not ready"}


@pytest.mark.parametrize(("name", "text"), [("release", "five"), ("release", ""), ("report", "failed"), ("report", "")])
def test_what_root_did_not_write_is_a_sentence(config: Path, capsys, name: str, text: str) -> None:
    (config.parent / "root" / name).write_text(text)
    assert main(["update", "--config", str(config)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_release_by_hand(config: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked, and left where root's side looks; without that side nothing is."""
    files = {"anabranch-2-py3-none-any.whl": b"ours", "pip-1-py3-none-any.whl": b"pip"}
    release = config.parent / "agent.tar"
    release.write_bytes(pack_release(manifest_of(files, 7), files, FLEET_KEY, FLEET))
    assert main(["update", str(release), "--config", str(config)]) == 2
    assert "anabranch-update" in capsys.readouterr().err
    spool = config.parent / "state" / updating.SPOOL
    assert not spool.exists()
    monkeypatch.setattr(update_command, "has_updater", lambda: True)
    facts = json.loads(said(config, capsys, str(release), "--json"))
    assert (facts["spooled"]["number"], spool.read_bytes()) == (7, release.read_bytes())
    release.write_bytes(release.read_bytes()[:-1])
    spool.unlink()
    assert main(["update", str(release), "--config", str(config)]) == 2
    assert "E_SIZE" in capsys.readouterr().err
    assert not spool.exists()
