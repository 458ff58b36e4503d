"""`python -m models new NAME`: what it writes passes its gates and is short; a name that cannot be is refused."""

import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from models.build import build
from models.gates import run_gates
from models.new import write_model

ROOT = Path(__file__).parents[2]
OURS = 'lint.isort.known-first-party = ["models"]'  # ruff looks for the file, and that one is not in this checkout


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The SPEC of a new model in a workshop of its own."""
    write_model("door_sounds", tmp_path)
    for name, file in (("models.door_sounds.model", "model.py"), ("models.door_sounds", "__init__.py")):
        found = util.spec_from_file_location(name, tmp_path / "door_sounds" / file)
        module = util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, name, module)
        found.loader.exec_module(module)
    return sys.modules["models.door_sounds"].SPEC


def test_a_new_model_builds_and_passes_every_gate_at_once(made):
    results = run_gates(Bundle.read(build(made)), made)
    assert [gate for gate in results if not gate.passed] == []


def test_an_author_starts_from_less_than_forty_lines_that_say_the_data_is_made_up(tmp_path):
    text = "".join(path.read_text() for path in write_model("door_sounds", tmp_path))
    assert len([line for line in text.splitlines() if line.strip()]) < 40
    assert "MADE UP" in text
    assert "from_npz" in text


@pytest.mark.parametrize("name", ["door_sounds", "optim", "optimizers2", "pumps", "spec_b", "zebras"])
def test_what_is_written_passes_the_linter_whatever_its_name_sorts_behind(name, tmp_path):
    """Imports are in order, lines short, and the formatter would change nothing."""
    for path in write_model(name, tmp_path):
        for command in (["check", "--config", OURS], ["format", "--check"]):
            ruff = ["ruff", *command, "--no-cache", "--stdin-filename", f"models/{name}/{path.name}", "-"]
            ended = subprocess.run(
                [sys.executable, "-m", *ruff], cwd=ROOT, input=path.read_bytes(), capture_output=True, check=False
            )
            assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()


@pytest.mark.parametrize("name", ["3d", "has-dash", "Upper", "class", "", "a b", "né", "x" * 65])
def test_a_name_that_no_package_can_have_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot be called"):
        write_model(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused_and_what_is_there_stays(tmp_path):
    (first, _) = write_model("door_sounds", tmp_path)
    first.write_text("mine")
    (tmp_path / "build.py").write_text("")
    for name in ("door_sounds", "build", "json"):
        with pytest.raises(ConfigError, match="taken"):
            write_model(name, tmp_path)
    assert first.read_text() == "mine"
