"""Storms are drawn from a seed, carried out, and undone."""

import json
import zlib
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.experiment import Deed, EventSection, Experiment, FaultsSection, FleetSection
from anabranch.simulator.faults import ALL_DEEDS, draw, written
from anabranch.simulator.twin import Twin
from anabranch.simulator.weather import tampered
from anabranch.simulator.world import World
from fl_protocol.chunks import Outgoing
from fl_protocol.codec import decode_as, encode
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Chunk
from tests.chaos.storms import CHAOS

NAMES = ("device-0", "device-1", "device-2")
BROKERS = {deed for deed in ALL_DEEDS if deed.startswith("broker-")}
OF_MANY = {"half-dies", "lost"}  # for experiments: no storm draws them
sections = st.builds(
    FaultsSection,
    storm_s=st.floats(1, 1000),
    count=st.tuples(st.integers(0, 5), st.integers(5, 30)),
    deeds=st.lists(st.sampled_from([d for d in ALL_DEEDS if d not in OF_MANY]), max_size=5).map(tuple),
)


@given(sections, st.integers(0, 1000))
def test_a_storm_is_what_its_section_says(section, seed) -> None:
    """As many faults as wanted, of the deeds wanted, in order, each somebody's; and the same again."""
    faults = draw(section, NAMES, World(seed).rng("faults"))
    assert section.count[0] <= len(faults) <= section.count[1]
    assert sorted(fault.number for fault in faults) == list(range(len(faults)))
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    for fault in faults:
        assert fault.deed in (section.deeds or ALL_DEEDS)
        assert 0 <= fault.at <= section.storm_s
        assert 0 < fault.for_s <= section.storm_s
        assert (fault.who == "broker") if fault.deed in BROKERS else fault.who in (*NAMES, "gateway")
    assert faults == draw(section, NAMES, World(seed).rng("faults"))


def test_every_deed_is_drawn() -> None:
    """But for those that are meant for experiments; the gateway is hit about as often as all devices together."""
    section = FaultsSection(storm_s=100.0, count=(3000, 3000))
    faults = draw(section, NAMES, World(0).rng("faults"))
    assert {fault.deed for fault in faults} == set(ALL_DEEDS) - OF_MANY
    cuts = [fault.who for fault in faults if fault.deed == "cut"]
    assert 0.4 < cuts.count("gateway") / len(cuts) < 0.6


def test_events_are_for_machines_that_there_are() -> None:
    """`ConfigError` names the one that there is not."""
    events = [EventSection(at_s=3.0, deed="kill", who="device-1"), EventSection(at_s=4.0, deed="broker-wiped")]
    assert [(f.number, f.deed, f.who) for f in written(events, NAMES)] == [
        (0, "kill", "device-1"),
        (1, "broker-wiped", "broker"),
    ]
    with pytest.raises(ConfigError, match="device-7"):
        written([EventSection(at_s=3.0, deed="kill", who="device-7")], NAMES)
    with pytest.raises(ConfigError, match=r"gateway.*to whom gate cannot happen"):
        written([EventSection(at_s=3.0, deed="gate")], NAMES)
    with pytest.raises(ConfigError, match="amount = 0 for slow"):
        written([EventSection(at_s=3.0, deed="slow", amount=0.0)], NAMES)


AMOUNTS = {"reorder": 1.0, "late": 30.0, "slow": 50.0}  # else what it is unless told
STORM = replace(
    CHAOS, fleet=replace(CHAOS.fleet, start_within_s=5.0), faults=FaultsSection(storm_s=60.0, calm_s=1200.0)
)


def stormy(deed: Deed, who: str) -> Experiment:
    """One fault from 30 s on, which would outlast the storm by far."""
    event = EventSection(at_s=30.0, deed=deed, who=who, for_s=1e4, amount=AMOUNTS.get(deed), after=3)
    return replace(STORM, events=(event,))


@pytest.mark.parametrize(
    ("deed", "who"),
    [(deed, "device-0") for deed in ALL_DEEDS if deed not in OF_MANY]
    + [(deed, "gateway") for deed in ALL_DEEDS if deed not in (*OF_MANY, "leave", "gate", *BROKERS)],
)
def test_each_fault_is_survived_and_mended(deed: Deed, who: str) -> None:
    """Every invariant holds, the machines are what they were, and the fleet is at work again in time."""
    twin = Twin(stormy(deed, who), 1)
    before = twin.recorder.version
    twin.run()
    assert twin.checker.violations == []
    assert twin.recorder.version > before
    assert twin.broker.running
    assert twin.broker.fate is None
    for host in twin.hosts():
        assert host.gone == (deed == "leave" and host.name == who)
        if not host.gone:
            assert host.runs
            assert (host.wire.holds, host.wire.slowness, host.files.capacity) == (0, 1.0, None)
    for database in (twin.store, *(device.outbox for device in twin.devices)):
        assert not database.full
        assert not database.fails
    assert all(device.may_train for device in twin.devices)


def what_happened(experiment: Experiment) -> list[str]:
    """The trace without the lines that only say that a fault begins or ends, and without the programs' logs."""
    text = StringIO()
    Twin(experiment, 1, text=text).run()
    return [line for line in text.getvalue().splitlines() if not {"!", "#", "fault"} & set(line.split()[1:3])]


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    return what_happened(replace(STORM, events=()))


@pytest.mark.parametrize(
    ("deed", "who"),
    [(deed, "device-0") for deed in ALL_DEEDS if deed != "clock"]
    + [(deed, "gateway") for deed in ALL_DEEDS if deed not in ("leave", "gate", *BROKERS)],
)
def test_each_fault_does_something(deed: Deed, who: str, undisturbed: list[str]) -> None:
    """A schedule that says what happened, and did not make it happen, would prove nothing."""
    assert what_happened(stormy(deed, who)) != undisturbed


@pytest.mark.parametrize("deed", ["lose", "double", "reorder", "late"])
def test_the_weather_is_between_the_broker_and_one_subscriber(deed: Deed) -> None:
    """It strikes who it is meant for, from its beginning on, and nobody else."""
    twin = Twin(stormy(deed, "device-0"), 1)
    came: dict[str, int] = {}

    def arrive(name: str) -> None:
        came[name] = came.get(name, 0) + 1

    twin.faults.start()
    while twin.world.now < 30.0:
        twin.world.step()
    assert twin.broker.fate is not None
    for name in ("device-0", "device-1"):
        for _ in range(200):
            twin.broker.fate(name, "topic", b"said", lambda _payload, name=name: arrive(name))
    assert came.pop("device-1") == 200
    at_once = came["device-0"]
    while twin.world.next_at < 40.0:
        twin.world.step()
    soon = came["device-0"]
    match deed:
        case "lose":
            assert at_once == soon < 150
        case "double":
            assert at_once == 200
            assert soon > 250
        case "reorder":
            assert at_once < 150
            assert soon == 200
        case "late":
            assert at_once == soon < 180


def test_tampering_alters_what_is_signed_or_hashed_and_nothing_else() -> None:
    """A chunk with a CRC that fits, a signed message, an update; a word that nobody signs stays as it is."""
    rng = World(0).rng("tamper")
    chunk = encode(Outgoing(b"a version", 16384).chunk(0))
    altered = decode_as(Chunk, tampered("fl/1/twin/task/task/chunk/3", chunk, rng))
    assert altered.data != b"a version"
    assert zlib.crc32(altered.data) == altered.crc32
    manifest = tampered("fl/1/twin/task/task/manifest/stable", b'{"version": 3, "sig": "00"}', rng)
    assert json.loads(manifest) == {"version": 10**6, "sig": "00"}
    for topic in ("fl/1/twin/dev/device-0/state", "no topic of ours"):
        assert tampered(topic, b'{"version": 3}', rng) == b'{"version": 3}'


def test_half_of_the_fleet_can_die_at_once() -> None:
    """Every second device is gone for good, and those that are left go on."""
    twin = Twin(replace(stormy("half-dies", "gateway"), fleet=FleetSection(devices=8)), 1)
    twin.run()
    assert [device.gone for device in twin.devices] == [True, False] * 4
    assert twin.checker.violations == []
