"""Who the devices are and when they are awake, drawn from the seed."""

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.device import DeviceSpec
from anabranch.simulator.experiment import AttackSection, AvailabilitySection, Experiment, FleetSection, TierSection
from anabranch.simulator.fleet import draw_devices, spells
from anabranch.simulator.world import World
from fl_protocol.errors import ConfigError

NAMES = [f"device-{number:02d}" for number in range(20)]
SPEC = DeviceSpec("device-07", 7)


def experiment(**sections) -> Experiment:
    """An experiment with these sections."""
    return Experiment(name="test", **sections)


def test_tiers_are_dealt_by_their_shares() -> None:
    """Each has its part whatever the seed; who is in which is drawn, and the rest follows from it."""
    tiers = (TierSection(name="pi", share=0.75, slowness=4.0, memory_mb=512.0), TierSection(name="jetson", share=0.25))
    fleet = experiment(fleet=FleetSection(tiers=tiers))
    one, other = (draw_devices(fleet, NAMES, World(seed)) for seed in (0, 1))
    for specs in (one, other):
        assert [spec.name for spec in specs] == NAMES
        slow = [spec for spec in specs if spec.tier == "pi"]
        assert len(slow) == 15
        assert {(spec.slowness, spec.memory_mb) for spec in slow} == {(4.0, 512.0)}
    assert [spec.tier for spec in one] != [spec.tier for spec in other]
    assert one == draw_devices(fleet, NAMES, World(0))


@given(st.integers(1, 100), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_no_tier_is_off_its_share_by_a_whole_device(devices: int, parts: list[int]) -> None:
    """Whatever the shares, and however they were rounded: thirds of 21 are seven each."""
    tiers = tuple(TierSection(name=f"t{i}", share=round(part / sum(parts), 6)) for i, part in enumerate(parts))
    names = [f"device-{number}" for number in range(devices)]
    dealt = [spec.tier for spec in draw_devices(experiment(fleet=FleetSection(tiers=tiers)), names, World(0))]
    assert len(dealt) == devices
    for tier in tiers:
        assert abs(dealt.count(tier.name) - tier.share * devices) < 1.001


def test_slow_devices_are_named() -> None:
    """They are `slow_by` times slower than they would be, and the others as fast as before; nobody else is named."""
    with pytest.raises(ConfigError, match=r"fleet\.slow names fan-20"):
        draw_devices(experiment(fleet=FleetSection(slow=("fan-20",))), NAMES, World(3))
    fleet = FleetSection(slowness_spread=0.5)
    before = draw_devices(experiment(fleet=fleet), NAMES, World(3))
    after = draw_devices(experiment(fleet=replace(fleet, slow=("device-04",), slow_by=8.0)), NAMES, World(3))
    ratios = {a.name: a.slowness / b.slowness for a, b in zip(after, before, strict=True)}
    assert ratios.pop("device-04") == pytest.approx(8.0)
    assert set(ratios.values()) == {1.0}


def test_liars_are_drawn_or_named_and_lie_in_one_way_only() -> None:
    """A share of all devices, among those that are honest still. Raises for a name that nobody has."""
    attacks = (AttackSection(kind="noise", devices=("device-00",)), AttackSection(kind="sign-flip", share=0.5))
    lies = [spec.attack for spec in draw_devices(experiment(attacks=attacks), NAMES, World(0))]
    assert lies[0] == "0"
    assert lies.count("1") == 10
    with pytest.raises(ConfigError, match="nobody"):
        draw_devices(experiment(attacks=(AttackSection(kind="noise", devices=("nobody",)),)), NAMES, World(0))


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.integers(0, 1000))
def test_spells_follow_each_other(awake_s, asleep_s, seed) -> None:
    """Each ends after it began, and before the next; the same seed gives the same."""
    section = AvailabilitySection(kind="turns", awake_s=awake_s, asleep_s=asleep_s)
    first = list(islice(spells(section, SPEC, World(seed)), 20))
    times = [time for spell in first for time in spell]
    assert times == sorted(times)
    assert first == list(islice(spells(section, SPEC, World(seed)), 20))


def test_turns_have_their_share_of_the_time() -> None:
    """Awake for a twentieth of the time, when that is what the section says, from the first moment on."""
    section = AvailabilitySection(kind="turns", awake_s=60.0, asleep_s=1140.0)
    taken = [list(islice(spells(section, DeviceSpec(str(n), n), World(0)), 50)) for n in range(200)]
    awake = sum(end - start for each in taken for start, end in each)
    assert 0.045 < awake / sum(each[-1][1] for each in taken) < 0.055
    assert 2 <= sum(each[0][0] == 0 for each in taken) <= 20


def test_a_trace_repeats(tmp_path) -> None:
    """Devices take its rows in turn, and it begins anew each period; who is always awake has none."""
    path = tmp_path / "trace.csv"
    path.write_text("device,start_s,end_s\na,0,10\nb,5,6\nb,7,30\n")
    section = AvailabilitySection(kind="trace", trace=path, period_s=100.0)
    assert list(islice(spells(section, SPEC, World(0)), 3)) == [(5.0, 6.0), (7.0, 30.0), (105.0, 106.0)]
    assert spells(AvailabilitySection(), SPEC, World(0)) is None


@pytest.mark.parametrize("text", ["", "device,start_s,end_s\n", "device,start_s,end_s\na,9,3\n", "device,from\na,1\n"])
def test_a_trace_that_cannot_be_read_says_so(text, tmp_path) -> None:
    """`ConfigError` names the file, and the hint what it should look like."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"trace\.csv") as error:
        spells(AvailabilitySection(kind="trace", trace=path), SPEC, World(0))
    assert "device,start_s,end_s" in error.value.hint
