"""`anabranch simulate`, as a person types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch.__main__ import app
from anabranch.simulator.running import Job, parse_seeds, run_job
from fl_protocol.errors import ConfigError
from tests.chaos.mutants.gateway import manifest_before_commit, repeat_counted_as_new
from tests.chaos.storms import CHAOS_FILE

SMALL = """
name = "small"
seeds = [3, 4]
[plan]
buffer = 2
[fleet]
devices = 3
[stop]
versions = 4
[faults]
storm_s = 60.0
count = [3, 3]
deeds = ["cut", "lose"]
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A small experiment's file."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def simulate(*arguments: object):
    """Type it."""
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_a_run_leaves_a_folder_a_seed(experiment: Path, tmp_path: Path) -> None:
    """With its figures, a plot, and the trace where one was asked for; the file's seeds by default."""
    said = simulate(experiment, "--output", tmp_path / "out", "--trace")
    assert said.exit_code == 0, said.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seed-3", "seed-4"]
    there = {path.name for path in (tmp_path / "out/seed-3").iterdir()}
    assert {"trace.txt", "accuracy.png"} < there
    assert (tmp_path / "out/seed-3/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "commits version 4" in (tmp_path / "out/seed-3/trace.txt").read_text()
    assert "seed 3: " in said.output
    assert "0 seeds broken" in said.output


def test_check_leaves_nothing(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor there; and says how many seeds, events, and checks it took."""
    monkeypatch.chdir(tmp_path)
    said = simulate(experiment, "--seeds", "0:3", "--check")
    assert said.exit_code == 0, said.output
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
    assert "3 seeds (0 to 2)" in said.output


def test_json_is_for_scripts(experiment: Path) -> None:
    """Every run's figures on stdout, and nothing else there; the same seed side by side gives the same."""
    alone, beside = (
        json.loads(simulate(experiment, "--seeds", "5,6", "--check", "--json", "--jobs", jobs).stdout)
        for jobs in (1, 2)
    )
    assert [run["seed"] for run in alone["runs"]] == [5, 6]
    assert alone["broken"] == []
    for one, other in zip(alone["runs"], beside["runs"], strict=True):
        assert one | {"wall_s": 0} == other | {"wall_s": 0}
        assert one["versions"] == 4


def test_the_faults_to_keep_can_be_named(experiment: Path) -> None:
    """By their numbers, or none; all else of the run is drawn as before."""

    def faults(*arguments: str) -> list[str]:
        said = simulate(experiment, "--seed", 3, "--check", "--json", *arguments)
        return json.loads(said.stdout)["runs"][0]["faults"]

    everything = faults()
    assert len(everything) == 3
    assert faults("--faults", "none") == []
    assert faults("--faults", "1") == [fault for fault in everything if fault.startswith("#1 ")]


def test_a_broken_seed_says_how_to_see_it_again(experiment: Path) -> None:
    """The rule, the command that replays it, the one that makes it small; and the exit status is 1."""
    with manifest_before_commit():
        said = simulate(experiment, "--seed", "3", "--check")
    assert said.exit_code == 1
    assert "durable before announced" in said.output
    assert f"{Job(experiment, 3).command} --trace" in said.output
    assert f"{Job(experiment, 3).command} --shrink" in said.output
    assert "1 seeds broken" in said.output


def test_shrink_finds_a_small_schedule_and_its_command() -> None:
    """A planted bug that needs one fault to show: the command names that one, and shows it again."""
    with repeat_counted_as_new():
        seed = next(str(seed) for seed in range(50) if not run_job(Job(CHAOS_FILE, seed)).ok)
        said = simulate(CHAOS_FILE, "--seed", seed, "--check", "--shrink")
        (line,) = [line for line in said.output.splitlines() if "--faults" in line]
        assert line.split()[:2] == ["see", "it"]
        kept = line.split("--faults ")[1].split()[0]
        again = simulate(CHAOS_FILE, "--seed", seed, "--faults", kept, "--check", "--json")
    assert said.exit_code == again.exit_code == 1
    (run,) = json.loads(again.stdout)["runs"]
    assert f"{len(run['faults'])} of " in said.output
    assert "one verdict an update" in "\n".join(run["violations"])


@pytest.mark.parametrize(("text", "seeds"), [("7", (7,)), ("1,2,3", (1, 2, 3)), ("0:4", (0, 1, 2, 3)), ("5:6", (5,))])
def test_seeds_are_one_some_or_a_range(text: str, seeds: tuple[int, ...]) -> None:
    """Of a range the last is left out."""
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3:3", "5:2", "-1", "1,,2"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    """`ConfigError` says what to write."""
    with pytest.raises(ConfigError) as error:
        parse_seeds(text)
    assert "0:1000" in error.value.hint


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["missing.toml"], "missing.toml"),
        (["a.toml", "b.toml"], "2 experiments"),
        ([CHAOS_FILE, "--seed", "x"], "--seeds x"),
        ([CHAOS_FILE, "--faults", "x"], "--faults x"),
        (["--compare", "nowhere"], "nowhere"),
    ],
)
def test_what_the_operator_must_mend_is_a_config_error(arguments: list[object], what: str) -> None:
    """Which `anabranch` prints as a sentence and a hint; see `main`."""
    error = simulate(*arguments).exception
    assert isinstance(error, ConfigError)
    assert what in error.message
