"""`python -m models`: what it names, what it refuses, and that a bundle is written only when every gate is passed."""

import sys

import pytest

import models.__main__ as cli
from models.gates import Gate


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["models", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_catalog_is_listed(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    assert "fan_vibration" in capsys.readouterr().out


def test_a_model_that_does_not_exist_is_refused_with_the_names_that_do(monkeypatch, capsys):
    assert run(monkeypatch, "build", "fan_vibratoin") == 2
    assert "fan_vibration" in capsys.readouterr().err


@pytest.mark.parametrize("passed", [True, False])
def test_a_bundle_is_written_only_when_every_gate_is_passed(monkeypatch, tmp_path, passed):
    gates = [Gate("first", "1", "2", True), Gate("second", "3", "2", passed)]
    shipped = (cli.SHIPPED / "fan_vibration.bundle").read_bytes()
    monkeypatch.setattr(cli, "build_bundle", lambda _spec: shipped)
    monkeypatch.setattr(cli, "run_gates", lambda _bundle, _spec: gates)
    out = tmp_path / "fan.bundle"
    assert run(monkeypatch, "build", "fan_vibration", "--out", str(out)) == (0 if passed else 2)
    assert out.exists() == passed
    if passed:
        assert out.read_bytes() == shipped
