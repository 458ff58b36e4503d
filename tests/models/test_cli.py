"""`python -m models`: what it names, what it refuses, and that a bundle is written only when every gate is passed."""

import json
import sys
import types

import pytest

import models.__main__ as cli
from models import spec
from models.gates import Gate
from tests.models.specs import toy

FIRST = Gate("first", "1", "2", True)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["models", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_catalog_is_listed(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    assert "fan_vibration" in capsys.readouterr().out


def test_the_catalog_is_listed_for_a_script(monkeypatch, capsys):
    assert run(monkeypatch, "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fan_vibration"]["labels"] == ["normal", "perpendicular weights", "opposite weights"]


def test_a_model_that_does_not_exist_is_refused_with_the_nearest_that_does(monkeypatch, capsys):
    assert run(monkeypatch, "build", "fan_vibratoin") == 2
    assert "did you mean 'fan_vibration'" in capsys.readouterr().err


def test_a_spec_that_has_not_the_name_of_its_folder_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(spec, "import_module", lambda _name: types.SimpleNamespace(SPEC=toy()))
    assert run(monkeypatch, "build", "stand_in") == 2
    assert "models/stand_in has a SPEC named 'toy'" in capsys.readouterr().err


@pytest.mark.parametrize("passed", [True, False])
def test_a_bundle_is_written_only_when_every_gate_is_passed(monkeypatch, tmp_path, capsys, passed):
    gates = [FIRST, Gate("second", "3", "2", passed)]
    shipped = (cli.SHIPPED / "fan_vibration.bundle").read_bytes()
    monkeypatch.setattr(cli, "build_bundle", lambda _spec: shipped)
    monkeypatch.setattr(cli, "run_gates", lambda _bundle, _spec, _passing: gates)
    out = tmp_path / "fan.bundle"
    assert run(monkeypatch, "build", "fan_vibration", "--out", str(out)) == (0 if passed else 2)
    assert out.exists() == passed
    said = capsys.readouterr()
    if passed:
        assert out.read_bytes() == shipped
        assert "7,235 parameters" in said.out
    else:
        assert "gates not passed: second" in said.err
        assert "docs/bring-your-own-model.md says" in said.err


def test_gates_are_measured_for_a_script(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_gates", lambda _bundle, _spec, _passing: [FIRST])
    assert run(monkeypatch, "gates", "fan_vibration", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "first", "measured": "1", "allowed": "2", "passed": True}]


def test_a_bundle_that_is_not_there_or_none_is_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "text.bundle").write_text("no bundle")
    assert run(monkeypatch, "gates", "stand_in", "--bundle", str(tmp_path / "none.bundle")) == 2
    assert "python -m models build stand_in" in capsys.readouterr().err
    assert run(monkeypatch, "gates", "stand_in", "--bundle", str(tmp_path / "text.bundle")) == 2


def test_new_says_what_it_wrote_and_what_comes_next(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "__main__.py"))
    assert run(monkeypatch, "new", "door_sounds") == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "door_sounds/model.py" in said
    assert "python -m models build door_sounds" in said
    assert run(monkeypatch, "new", "door_sounds") == 2
