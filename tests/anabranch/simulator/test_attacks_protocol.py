"""Devices with a valid key that break the protocol: what the gateway's own code makes of them."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from anabranch.simulator.attacks.kinds import KINDS
from anabranch.simulator.attacks.protocol import AHEAD, FRESH, not_finite
from anabranch.simulator.data import read_bundle
from anabranch.simulator.experiment import (
    AttackSection,
    DataSection,
    EventSection,
    Experiment,
    FleetSection,
    StopSection,
    TrainingSection,
)
from anabranch.simulator.twin import TASK, Twin
from broker_aggregator.fleet import REFUSAL_S, REFUSALS
from fl_protocol.codec import decode_as
from fl_protocol.compression import decode_statistics, make_compressor
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Envelope, Update
from fl_protocol.topics import Kind, parse

_, STAND_IN = read_bundle(Experiment(name="test"))
BAD = ("device-0", "device-5", "device-7")
RUN = Experiment(
    name="run",
    plan={"buffer": 6, "deadline_s": 30, "local_epochs": 5},
    data=DataSection(noise=0.0),
    fleet=FleetSection(devices=10, slowness_spread=0.3),
    training=TrainingSection(step_ms=200.0),
    stop=StopSection(versions=30),
)


class Watched(Twin):
    """Listens to what reaches the broker: (device, seq) -> how often its update was sent, and its base version."""

    def run(self, *args) -> None:
        self.heard: Counter[tuple[str, int]] = Counter()
        self.bases: dict[tuple[str, int], int] = {}
        received = self.broker.received

        def listen(link, packet, mid) -> None:
            topic = parse(packet.topic)
            if topic.kind is Kind.UPDATE:
                update = decode_as(Update, decode_as(Envelope, packet.payload).body)
                self.heard[topic.device, update.seq] += 1
                self.bases[topic.device, update.seq] = update.base_version
            received(link, packet, mid)

        self.broker.received = listen
        super().run(*args)


def run(kind: str | None, **changes) -> Watched:
    """Ten devices, three of them hostile, thirty versions, every invariant at every step."""
    attacks = (AttackSection(kind=kind, devices=BAD),) if kind else ()
    twin = Watched(replace(RUN, attacks=attacks, **changes), 1)
    twin.run()
    twin.recorder.close()
    assert not twin.checker.violations
    return twin


def codes(twin: Twin) -> Counter[str]:
    """What the hostile were told: a code, or `accepted`."""
    return Counter(str(row.verdict.code or row.verdict.verdict) for row in twin.store.rows() if row.device in BAD)


@pytest.fixture(scope="module")
def clean() -> Watched:
    """Nobody attacks."""
    return run(None)


@cache
def attacked(kind: str) -> Watched:
    """A run with these attackers."""
    return run(kind)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.level == "protocol"])
def test_they_hurt_the_mean_or_are_refused(clean: Watched, kind: str) -> None:
    """Every release is finite and can be made again whatever comes; and honest devices are refused as rarely."""
    twin = attacked(kind)
    told = codes(twin)
    assert np.isfinite(twin.store.release(TASK).vector).all()
    if kind == "nan":
        assert set(told) <= {"E_NAN", "E_STALE"}
        assert twin.recorder.value > clean.recorder.value - 0.05
    else:
        assert told["accepted"]
        assert twin.recorder.loss > 1.5 * clean.recorder.loss
    honest = Counter(row.verdict.verdict for row in twin.store.rows() if row.device not in BAD)
    assert not honest["rejected"]
    same, of = twin.recorder.summary("", 0.0).replayed
    assert same == of


def test_a_replay_is_counted_once() -> None:
    """The same sealed update, long after its verdict, too: its second arrival hears the first one's."""
    twin = attacked("replay")
    again = {name: times for name, times in twin.heard.items() if times > 1 and name[0] in BAD}
    assert len(again) > 10
    rows = Counter((row.device, row.seq) for row in twin.store.rows())
    assert all(rows[name] == 1 for name in again)


def test_a_lie_about_the_base_is_found_or_counts_as_it_says() -> None:
    """A version that was never released is; an older one than was counted is; the current one cannot be told."""
    twin = attacked("base-version")
    told = codes(twin)
    assert told["E_VERSION"]
    assert told["accepted"]
    for row in twin.store.rows():
        if row.device in BAD and twin.bases[row.device, row.seq] >= AHEAD:
            assert row.verdict.code in (Code.VERSION, Code.STALE)  # this one when the task has ended
        if row.device in BAD and row.verdict.verdict == "accepted":
            assert row.base_version == twin.bases[row.device, row.seq]


def test_a_flood_costs_little_and_counts_once_a_version() -> None:
    """Two updates a second: each device is counted once from a version, and told few refusals that are kept."""
    twin = attacked("flooding")
    most = REFUSALS + twin.world.now / REFUSAL_S + 1
    for device in BAD:
        rows = [row for row in twin.store.rows() if row.device == device]
        sent = sum(times for (name, seq), times in twin.heard.items() if name == device and seq > FRESH)
        assert sent > 1.5 * twin.recorder._ended_at
        bases = [row.base_version for row in rows if row.verdict.verdict == "accepted"]
        assert len(set(bases)) == len(bases)
        assert sum(row.verdict.verdict != "accepted" for row in rows) <= most


@pytest.mark.parametrize("kind", ["replay", "flooding"])
def test_a_hostile_device_dies_and_goes_on(kind: str) -> None:
    """Its programs come and go as any; while it sleeps it sends nothing, and nothing of it troubles the checks."""
    events = tuple(
        EventSection(at_s=at_s, deed=deed, who=BAD[1], for_s=8.0, after=after)
        for at_s, deed, after in ((12.0, "kill", 3), (25.0, "freeze", 0), (40.0, "power", 2))
    )
    twin = run(kind, events=events)
    (device,) = [device for device in twin.devices if device.name == BAD[1]]
    assert device.boots == 3
    assert max(seq for name, seq in twin.heard if name == BAD[1]) > (FRESH if kind == "flooding" else 3)
    again = run(kind, events=events)
    assert again.trace.sha256 == twin.trace.sha256


def test_what_is_not_finite_is_said_in_three_ways() -> None:
    """Of the delta NaN and infinity, and NaN of the statistics: each is refused by the one who reads it."""
    update = Update(
        device="a",
        incarnation="0" * 16,
        seq=1,
        task=TASK,
        plan_revision=0,
        base_version=0,
        fingerprint=STAND_IN.layout.fingerprint,
        num_examples=1,
        local_steps=1,
        codec={"name": "none"},
        payload=np.zeros(STAND_IN.layout.num_parameters, "<f4").tobytes(),
        statistics=np.zeros(STAND_IN.layout.num_statistics, "<f2").tobytes(),
    )
    for seq in (1, 2, 3):
        lie = not_finite(replace(update, seq=seq), STAND_IN.layout)
        with pytest.raises(ProtocolError) as refused:
            _read(lie)
        assert refused.value.code == Code.NAN


def _read(update: Update) -> None:
    make_compressor(update.codec, STAND_IN.layout).decompress(update.payload)
    decode_statistics(update.statistics, STAND_IN.layout)
