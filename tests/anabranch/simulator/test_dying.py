"""Devices that die while they train, and a fleet of which most is lost: what the twin does, and what training does."""

from io import StringIO
from pathlib import Path

from anabranch.simulator.experiment import Experiment, load_experiment
from anabranch.simulator.link import KEEPALIVE_S
from anabranch.simulator.recorder import Recorder
from anabranch.simulator.results import RunSummary
from anabranch.simulator.twin import Twin
from fl_protocol.topics import Kind, parse

HEAD = """
name = "dying"
[plan]
buffer = 4
deadline_s = 120
{plan}
[data]
examples = [40, 60]
[fleet]
devices = 12
{fleet}
[training]
overhead_ms = 20000.0
[stop]
{stop}
{more}
"""
INVITED = 'participation = { name = "invited", lease_min_s = 30, lease_max_s = 300 }'
DIES = "dies = 0.9\nback_s = 60.0"
LOST = '[[events]]\nat_s = 600\ndeed = "lost"\nwho = "broker"\namount = 0.9'


def experiment(
    tmp_path: Path, plan: str = "", fleet: str = "", stop: str = "hours = 1.0", more: str = ""
) -> Experiment:
    """A small fleet whose trainings take twenty seconds."""
    path = tmp_path / "dying.toml"
    path.write_text(HEAD.format(plan=plan, fleet=fleet, stop=stop, more=more))
    return load_experiment(path)


def ran(what: Experiment, seed: int = 0) -> tuple[Twin, RunSummary]:
    """A whole run, without a broken invariant."""
    recorder = Recorder()
    twin = Twin(what, seed, recorder=recorder)
    twin.run()
    recorder.close()
    summary = recorder.summary("", 0.0)
    assert summary.violations == ()
    return twin, summary


def test_nine_in_ten_trainings_die_and_versions_still_come(tmp_path: Path) -> None:
    """As many as were drawn to; each device is back after about a minute, and no version waits for the dead."""
    twin, summary = ran(experiment(tmp_path, fleet=DIES))
    assert 0.8 < summary.died / summary.begun < 0.97
    assert all(device.died - (device.boots - 1) in (0, 1) for device in twin.devices)
    assert summary.versions > 10
    assert summary.longest_s is not None
    assert summary.longest_s < 900


def test_a_death_is_the_same_in_the_next_run_of_a_seed(tmp_path: Path) -> None:
    """And another in another seed."""
    hashes = [ran(experiment(tmp_path, fleet=DIES, stop="hours = 0.2"), seed)[1].trace_sha256 for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_device_that_dies_training_says_nothing(tmp_path: Path) -> None:
    """The broker speaks its will when the keep-alive has been over half as long again, and not before."""
    text = StringIO()
    Twin(experiment(tmp_path, fleet="dies = 1.0\nback_s = 600.0", stop="hours = 0.05"), 0, text=text).run()
    died: dict[str, float] = {}
    heard: dict[str, float] = {}
    for line in text.getvalue().splitlines():
        time, who, what, *rest = line.split()
        if what == "dies":
            died.setdefault(who, float(time))
        elif (who, what) == ("gateway", "hears") and parse(rest[0]).kind is Kind.STATE:
            device = parse(rest[0]).device
            if device in died:
                heard.setdefault(device, float(time))
    assert len(died) == len(heard) == 12
    assert all(1.5 * KEEPALIVE_S <= heard[name] - died[name] < 1.5 * KEEPALIVE_S + 1 for name in died)


def test_nine_tenths_of_a_fleet_are_lost_and_the_rest_goes_on(tmp_path: Path) -> None:
    """By its deadline, with what is left of it; an event says which share leaves for good."""
    twin, summary = ran(experiment(tmp_path, more=LOST))
    assert sum(device.gone for device in twin.devices) == 11
    assert summary.longest_s is not None
    assert summary.longest_s < 300
