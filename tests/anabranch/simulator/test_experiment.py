"""What an experiment's file says, and how it is told that it makes no sense."""

from pathlib import Path

import pytest

from anabranch.simulator.data import read_bundle
from anabranch.simulator.experiment import LinkSection, TierSection, load_experiment
from fl_protocol.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / "benchmarks/experiments").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_experiments_that_ship_can_be_read(path: Path) -> None:
    """Each is called like its file, says what it is about, and has its bundle."""
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.description
    assert read_bundle(experiment)


def load(tmp_path: Path, text: str):
    """An experiment of this text."""
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\n{text}')
    return load_experiment(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[fleet]\ndevicess = 3", "devices"),
        ("[fleet]\ndevices = 0", "devices"),
        ("[faults]\ncount = [5, 1]", "smaller number first"),
        ('[faults]\ndeeds = ["explode"]', "explode"),
        ("seeds = []", "seeds"),
        ("seeds = [1, 1]", "once"),
        ('[[fleet.tiers]]\nname = "pi"\nshare = 0.4', "add up to 0.4"),
        ("[training]\nreal = true", "stand-in"),
        ('[availability]\nkind = "trace"', "trace"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, what: str, tmp_path: Path) -> None:
    """`ConfigError` names the field or how to mend it."""
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert what in f"{error.value.message} {error.value.hint}"


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    """Of bundles, data and traces; names of what ships stay names."""
    text = 'bundle = "b/mine.bundle"\n[data]\nsource = "mine.npz"\n[availability]\nkind = "trace"\ntrace = "a.csv"'
    mine = load(tmp_path, text)
    assert mine.bundle == str(tmp_path / "b/mine.bundle")
    assert mine.data.source == str(tmp_path / "mine.npz")
    assert mine.availability.trace == tmp_path / "a.csv"
    assert load(tmp_path, "").bundle == "stand_in"


def test_a_tier_changes_what_it_names_of_the_link() -> None:
    """Also to zero; kbit/s become bytes a second, and milliseconds seconds."""
    link = LinkSection(latency_ms=100.0, jitter_ms=10.0, up_kbit_s=8.0, down_kbit_s=16.0, loss=0.1)
    spec = link.spec(TierSection(name="wired", share=1.0, loss=0.0, up_kbit_s=80.0))
    assert (spec.latency_s, spec.jitter_s, spec.up_bytes_s, spec.down_bytes_s, spec.loss) == (0.1, 0.01, 1e4, 2e3, 0.0)


def test_numbers_in_a_plan_become_the_decimals_that_are_signed(tmp_path: Path) -> None:
    """A signed plan holds no floats."""
    plan = load(tmp_path, '[plan]\n[plan.codec]\nname = "uq"\nstep = 2.5').plan
    assert plan["codec"] == {"name": "uq", "step": "2.5"}
