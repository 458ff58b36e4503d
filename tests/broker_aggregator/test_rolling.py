"""Roll-outs at the gateway: waves, rate, threshold; nobody is asked twice, whenever the gateway falls."""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulator.store_model import MemoryStore
from broker_aggregator.commanding import Commanding
from broker_aggregator.coordinator import Coordinator
from broker_aggregator.events import Asked, Durable, Effect, Progressed, Received, SaveAttempt, SaveDevice, Send, Tick
from broker_aggregator.rolling import BURST, KEPT_ROLLOUTS, Rolling
from broker_aggregator.rollout import Attempt, KeptRelease, Rollout, read_groups, wave_of
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Answer, Ask, CommandProgress, DeviceCommand, DeviceInfo, DeviceState
from fl_protocol.topics import Kind, Topic
from tests.support.fleet import FLEET, key_of, of_kind

RELEASE = KeptRelease("ab" * 32, 5000, 7, "0.2.0", "arm64", "3.13")
START_MS = 1_800_000_000_000
MINUTE_MS = 60_000


@dataclass
class Yard:
    """A gateway with a disk, and devices that the test answers for."""

    store: MemoryStore = field(default_factory=MemoryStore)
    now_ms: int = START_MS
    counter: int = 0
    asked: list[tuple[int, str, str]] = field(default_factory=list)  # when, device, cid: the first time of each

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> "Yard":
        """kill -9, and the next process."""
        loaded = self.store.load(0.0)
        self.gateway = Coordinator(
            FLEET,
            loaded.fleet,
            loaded.tasks,
            operator_counter=loaded.counters.get("operator", 0),
            operator_done=loaded.counters.get("operator/done", 0),
            commanding=Commanding(loaded.commands, loaded.configurations),
            rolling=Rolling(loaded.rollouts, loaded.attempts),
        )
        return self

    def handle(self, event: object) -> list[Effect]:
        """One event; what is durable of it is on the disk."""
        effects = list(self.gateway.handle(event, self.now_ms / 1000))  # type: ignore[arg-type]
        with self.store.transaction():
            for effect in effects:
                if isinstance(effect, get_args(Durable)):
                    self.store.apply(effect, self.now_ms)
        known = {cid for _, _, cid in self.asked}
        topics = [e.topic for e in effects if isinstance(e, Send) and isinstance(e.message, DeviceCommand)]
        self.asked += [(self.now_ms, topic.device, topic.cid) for topic in topics if topic.cid not in known]
        return effects

    def add(self, *devices: str, online: bool = True, **info: object) -> "Yard":
        """Devices of the field that were seen."""
        for name in devices:
            with self.store.transaction():
                self.store.apply(SaveDevice(name, key_of(name).public), self.now_ms)
        self.restart()
        for name in devices:
            fields = {"arch": "arm64", "python": "3.13.5", "release": 6, **info}
            said = DeviceInfo(software="x", public_key=key_of(name).public, incarnation="0" * 16, **fields)  # type: ignore[arg-type]
            self.handle(Received(name, said, now_ms=self.now_ms))
            state = DeviceState(state="ready" if online else "lost", boot=1, bseq=1)
            self.handle(Received(name, state, now_ms=self.now_ms))
        return self

    def ask(self, name: str, release: KeptRelease | None = RELEASE, **arguments: object) -> Answer:
        """An operator's command."""
        self.counter += 1
        asked = Asked(
            Ask(name=name, arguments=arguments, counter=self.counter),
            f"c{self.counter}",
            now_ms=self.now_ms,
            agent_release=release,
        )
        effects = self.handle(asked)
        return next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Answer))

    def start(self, *groups: str, rollout: str = "r1", **more: object) -> "Yard":
        """A roll-out, all at once unless told."""
        fields = {"per_hour": 0, "stop_at": "10", "deadline_s": 3600, **more}
        answer = self.ask("rollout-start", rollout=rollout, groups=list(groups or ("100%",)), **fields)
        assert answer.status == "successful", answer
        return self.tick()

    def tick(self, after_ms: int = 250) -> "Yard":
        """Time passes."""
        self.now_ms += after_ms
        self.handle(Tick(now_ms=self.now_ms))
        return self

    def answer(self, device: str, status: str, why: str = "", rollout: str = "r1") -> "Yard":
        """The device's word, and the tick in which it counts."""
        cid = self.gateway.rolling.attempts[rollout][device].command
        topic = Topic(Kind.DEVICE_COMMAND, FLEET, device=device, name="update-agent", cid=cid)
        self.handle(Progressed(topic, CommandProgress(status=status, why=why), self.now_ms))  # type: ignore[arg-type]
        return self.tick()

    @property
    def devices_asked(self) -> list[str]:
        return [device for _, device, _ in self.asked]

    def rollout(self, rollout: str = "r1") -> Rollout:
        return self.gateway.rolling.rollouts[rollout]

    def attempt(self, device: str, rollout: str = "r1") -> Attempt:
        return self.gateway.rolling.attempts[rollout][device]


def fleet(n: int) -> list[str]:
    return [f"d{i:03}" for i in range(n)]


# --- waves ---


@pytest.mark.parametrize(
    ("groups", "n", "ends"),
    [
        (["1", "10%", "100%"], 100, [1, 10, 100]),
        (["1", "10%", "100%"], 3, [1, 3]),
        (["1", "10%", "100%"], 1, [1]),
        (["50%"], 3, [2]),
        (["0.1%", "100%"], 10_000, [10, 10_000]),
        (["5", "7"], 6, [5, 6]),
    ],
)
def test_groups_are_how_many_have_it(groups: list[str], n: int, ends: list[int]) -> None:
    assert read_groups(groups, n) == ends


@pytest.mark.parametrize(
    "groups", [[], ["0"], ["0%"], ["101%"], ["half"], ["2", "1"], ["1.5"], [3], ["1%", "1%"], ["-1"]]
)
def test_what_is_no_list_of_groups_is_refused(groups: list[object]) -> None:
    with pytest.raises(ConfigError, match="groups"):
        read_groups(groups, 100)


percents = st.integers(1, 100).map(lambda p: f"{p}%") | st.integers(1, 400).map(str)


@given(st.lists(percents, min_size=1, max_size=6), st.integers(1, 300))
def test_waves_are_never_empty_and_only_grow(groups: list[str], n: int) -> None:
    """Each device is in one wave, or in none."""
    try:
        ends = read_groups(groups, n)
    except ConfigError:
        return
    assert ends == sorted(set(ends))
    assert all(1 <= end <= n for end in ends)
    waves = Counter(wave_of(ends, place) for place in range(n))
    assert all(waves[wave] for wave in range(len(ends)))
    assert sum(waves[wave] for wave in range(len(ends))) == ends[-1]


def test_one_then_a_tenth_then_all() -> None:
    """A wave begins when all of the one before have ended well."""
    yard = Yard().add(*fleet(20)).start("1", "10%", "100%")
    assert len(yard.asked) == 1
    first = yard.devices_asked[0]
    yard.answer(first, "executing", "installing release 7 (0.2.0)").tick(MINUTE_MS)
    assert (len(yard.asked), yard.attempt(first).state) == (1, "executing")
    yard.answer(first, "successful").tick()
    assert len(yard.asked) == 2
    yard.answer(yard.devices_asked[1], "successful").tick()
    assert sorted(yard.devices_asked) == fleet(20)
    for device in yard.devices_asked[2:]:
        yard.answer(device, "successful")
    assert (yard.rollout().state, yard.rollout().why) == ("finished", "")
    assert yard.rollout().ended_ms == yard.now_ms
    assert not yard.gateway.commanding._open


def test_a_bad_release_stops_after_its_first_device() -> None:
    """And says whom it broke, and why."""
    yard = Yard().add(*fleet(20)).start("1", "10%", "100%")
    (broken,) = yard.devices_asked
    yard.answer(broken, "failed", "rolled back: not ready").tick(MINUTE_MS).restart().tick()
    assert yard.rollout().state == "stopped"
    assert yard.rollout().why == f"wave 1: 1 of 1 devices failed: {broken}: rolled back: not ready"
    assert len(yard.asked) == 1


def test_it_stops_as_soon_as_too_many_have_failed() -> None:
    """Not at the wave's end; who has not begun never will, and who has begun is still heard."""
    yard = Yard().add(*fleet(10)).start("100%", stop_at="10")
    one, two, begun, off = yard.devices_asked[:4]
    yard.answer(begun, "executing").answer(one, "failed", "x")
    assert yard.rollout().state == "running"  # 10 % are not more than 10 %
    yard.answer(two, "rejected", "y")
    assert yard.rollout().state == "stopped"
    assert "2 of 10 devices failed" in yard.rollout().why
    assert (yard.attempt(off).state, yard.gateway.commanding.open_of(off)) == ("skipped", {})
    assert yard.gateway.commanding.open_of(begun)
    yard.restart().answer(begun, "successful")
    assert (yard.attempt(begun).state, yard.rollout().state) == ("successful", "stopped")


def test_a_device_that_is_off_waits_until_the_deadline_and_is_skipped_then() -> None:
    """It says nothing of the release; the next wave begins on what the others said."""
    yard = Yard().add(*fleet(3)).add("off", online=False).start("3", "4", devices=["d000", "off", "d001", "d002"])
    for device in ("d000", "d001"):
        yard.answer(device, "successful")
    yard.tick(3_500_000)
    assert (yard.attempt("off").state, yard.rollout().wave) == ("asked", 0)
    yard.tick(200_000).tick()
    assert (yard.attempt("off").state, yard.rollout().wave) == ("skipped", 1)
    assert "E_DEADLINE" in yard.attempt("off").why
    yard.tick()
    assert yard.devices_asked[-1] == "d002"


def test_one_that_began_and_is_not_heard_of_again_has_failed() -> None:
    """A release may break the network."""
    yard = Yard().add(*fleet(5)).start("1", "100%")
    yard.answer(yard.devices_asked[0], "executing").restart()
    yard.tick(3_700_000).tick()
    assert yard.rollout().state == "stopped"
    assert "began, and did not end" in yard.rollout().why


def test_nobody_in_the_first_wave_is_no_leave_to_go_on() -> None:
    """What nobody has tried is not for all."""
    yard = Yard().add(*fleet(3), online=False).start("1", "100%")
    yard.tick(3_700_000).tick()
    assert yard.rollout().state == "stopped"
    assert "nobody took it" in yard.rollout().why


def test_who_is_there_comes_first() -> None:
    yard = Yard().add(*fleet(10), online=False).add("here").start("1", "100%")
    assert yard.devices_asked == ["here"]


# --- whom it is for ---


def test_only_devices_that_it_fits() -> None:
    """The rest is counted by reason."""
    yard = Yard().add("good", "other", "new", "kit", "old")
    yard.add("other", arch="amd64").add("new", release=9).add("kit", release=0).add("old", release=None, arch=None)
    with yard.store.transaction():
        yard.store.apply(SaveDevice("ghost", key_of("ghost").public), 0)
        yard.store.apply(SaveDevice("gone", key_of("gone").public, revoked=True), 0)
    yard.restart().start()
    assert sorted(yard.devices_asked) == ["good", "kit"]
    assert yard.rollout().left_out == {
        "never seen": 1,
        "revoked": 1,
        "has a newer release": 1,
        "not arm64 with Python 3.13": 1,
        "takes no release from afar": 1,
    }


def test_who_has_it_already_is_not_asked() -> None:
    yard = Yard().add("a").add("b", release=7).start("100%", devices=["b", "a"])
    assert yard.devices_asked == ["a"]
    assert (yard.attempt("b").state, yard.attempt("b").why) == ("successful", "it has it already")


def test_a_revoked_device_is_skipped() -> None:
    yard = Yard().add("a", "b").start("1", "2", devices=["a", "b"])
    assert yard.ask("device-revoke", device="b").status == "successful"
    yard.answer("a", "successful").tick()
    assert (yard.attempt("b").state, yard.rollout().state) == ("skipped", "finished")
    assert yard.devices_asked == ["a"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"rollout": "Not An Id"}, "rollout"),
        ({"groups": "100%"}, "groups"),
        ({"groups": ["none"]}, "groups"),
        ({"per_hour": -1}, "per_hour"),
        ({"stop_at": "100"}, "stop_at"),
        ({"stop_at": "nan"}, "stop_at"),
        ({"stop_at": 10}, "stop_at"),
        ({"deadline_s": 59}, "deadline_s"),
        ({"devices": ["nobody"]}, "no device nobody"),
        ({"devices": ["other"]}, "not for other"),
        ({"devices": "a"}, "devices"),
        ({"devices": []}, "for no device"),
        ({"release": None}, "no such release"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(arguments: dict[str, object], word: str) -> None:
    yard = Yard().add("a").add("other", arch="amd64")
    usual = {"rollout": "r1", "groups": ["100%"], "per_hour": 0, "stop_at": "10", "deadline_s": 3600}
    answer = yard.ask("rollout-start", **{**usual, **arguments})  # type: ignore[arg-type]
    assert answer.status == "failed"
    assert word in answer.message
    assert not yard.tick().asked
    assert not yard.gateway.rolling.rollouts


def test_a_device_is_in_one_roll_out_at_a_time() -> None:
    """Others may go on beside it."""
    yard = Yard().add(*fleet(3)).start("100%", devices=["d000"])
    usual = {"groups": ["100%"], "per_hour": 0, "stop_at": "10", "deadline_s": 3600}
    assert "d000 is in the roll-out r1" in yard.ask("rollout-start", rollout="r2", **usual).message
    yard.start("100%", rollout="r2", devices=["d001"])
    yard.answer("d000", "successful")
    yard.start("100%", rollout="r3", devices=["d000"])
    assert yard.devices_asked == ["d000", "d001", "d000"]


def test_an_update_by_hand_is_waited_for() -> None:
    """And none is given beside a roll-out's."""
    yard = Yard().add("a")
    by_hand = {"device": "a", "command": "update-agent", "deadline_s": 600}
    arguments = {"sha256": "cd" * 32, "size": "10"}
    assert yard.ask("device-command", cid="hand", arguments=arguments, **by_hand).status == "successful"
    yard.start()
    assert [cid for _, _, cid in yard.asked] == ["hand"]
    topic = Topic(Kind.DEVICE_COMMAND, FLEET, device="a", name="update-agent", cid="hand")
    yard.handle(Progressed(topic, CommandProgress(status="successful"), yard.now_ms))
    yard.tick()
    assert [cid for _, _, cid in yard.asked] == ["hand", "r1-0"]
    again = yard.ask("device-command", cid="hand2", arguments=arguments, **by_hand)
    assert (again.status, "under way" in again.message) == ("failed", True)


# --- rate, pause, resume, stop ---


def test_no_more_an_hour_than_was_said() -> None:
    """Also after a pause, and after a restart: what was missed is not made up for at once."""
    yard = Yard().add(*fleet(30)).start("100%", per_hour=60)
    assert len(yard.asked) == 1
    for _ in range(9):
        yard.tick(MINUTE_MS)
    assert len(yard.asked) == 10
    yard.restart().tick(1000)
    assert len(yard.asked) == 10
    assert yard.ask("rollout-pause", rollout="r1").status == "successful"
    yard.tick(20 * MINUTE_MS)
    assert len(yard.asked) == 10
    assert yard.ask("rollout-resume", rollout="r1").status == "successful"
    yard.tick().tick().tick()
    assert len(yard.asked) == 11
    times = [at for at, _, _ in yard.asked]
    assert all(b - a >= MINUTE_MS - 1000 for a, b in itertools.pairwise(times))


def test_all_at_once_is_some_at_a_turn() -> None:
    """One turn of the loop stays short."""
    yard = Yard().add(*fleet(BURST + 5)).start("100%")
    assert len(yard.asked) == BURST
    assert len(yard.tick().asked) == BURST + 5


def test_what_ends_in_a_pause_counts_when_it_goes_on() -> None:
    yard = Yard().add(*fleet(4)).start("1", "100%")
    (first,) = yard.devices_asked
    yard.ask("rollout-pause", rollout="r1")
    yard.answer(first, "failed").restart().tick()
    assert yard.rollout().state == "paused"
    yard.ask("rollout-resume", rollout="r1")
    assert yard.tick().rollout().state == "stopped"


def test_a_stop_withdraws_who_has_not_begun() -> None:
    """Also over a restart; a device that comes back then hears of nothing."""
    yard = Yard().add(*fleet(4)).start("2", "100%")
    begun, off = yard.devices_asked
    yard.answer(begun, "executing")
    assert yard.ask("rollout-stop", rollout="r1").status == "successful"
    yard.restart().tick()
    assert not yard.gateway.commanding.open_of(off)
    assert yard.attempt(off).why.startswith("withdrawn")
    yard.answer(begun, "failed", "rolled back")
    assert Counter(a.state for a in yard.gateway.rolling.attempts["r1"].values()) == {"skipped": 3, "failed": 1}
    for name in ("rollout-pause", "rollout-resume", "rollout-stop"):
        assert "is stopped" in yard.ask(name, rollout="r1").message
    assert "there is no roll-out r9" in yard.ask("rollout-stop", rollout="r9").message


def test_old_roll_outs_are_forgotten() -> None:
    yard = Yard().add("a")
    for n in range(KEPT_ROLLOUTS + 3):
        yard.tick().start(rollout=f"n{n}").answer("a", "successful", rollout=f"n{n}")
    assert len(yard.gateway.rolling.rollouts) == KEPT_ROLLOUTS
    loaded = yard.store.load(0.0)
    assert (len(loaded.rollouts), len(loaded.attempts)) == (KEPT_ROLLOUTS, KEPT_ROLLOUTS)
    assert len(yard.store._attempts) == KEPT_ROLLOUTS


# --- whatever happens ---


def open_updates(yard: Yard) -> dict[str, int]:
    commands = yard.gateway.commanding
    return {d: list(commands.open_of(d).values()).count("update-agent") for d in yard.gateway.fleet.devices}


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_happens_the_rules_hold(data: st.DataObject) -> None:
    """Devices that succeed, fail, begin and vanish, or are off; a gateway that falls at any moment."""
    n = data.draw(st.integers(1, 12))
    fate = {d: data.draw(st.sampled_from(["good", "good", "good", "bad", "gone", "off"])) for d in fleet(n)}
    stop_at, per_hour = data.draw(st.sampled_from([0, 10, 34, 60])), data.draw(st.sampled_from([0, 60, 3600]))
    groups = data.draw(st.sampled_from([["100%"], ["1", "100%"], ["1", "30%", "100%"], ["2", "4", "50%", "100%"]]))
    yard = Yard().add(*fleet(n))
    yard.start(*groups, stop_at=str(stop_at), per_hour=per_hour)
    for _ in range(data.draw(st.integers(10, 60))):
        match data.draw(st.sampled_from(["tick", "answer", "answer", "fall", "minute", "hour"])):
            case "fall":
                yard.store.die("kill", np.random.default_rng(0))
                yard.restart()
            case "answer":
                waits = [d for d, a in yard.gateway.rolling.attempts["r1"].items() if a.state in ("asked", "executing")]
                if waits:
                    device = data.draw(st.sampled_from(waits))
                    begun = yard.attempt(device).state == "executing"
                    word = {"good": "successful", "bad": "failed", "gone": "executing", "off": ""}[fate[device]]
                    if word:
                        yard.answer(device, word if begun or word == "failed" else "executing")
            case "hour":
                yard.tick(3_700_000)
            case "minute":
                yard.tick(MINUTE_MS)
        yard.tick()
        assert max(open_updates(yard).values()) <= 1
    check(yard, stop_at, per_hour)


def check(yard: Yard, stop_at: int, per_hour: int) -> None:
    """What must hold at any time."""
    devices = Counter(yard.devices_asked)
    assert max(devices.values(), default=0) <= 1, "asked twice"
    rollout, attempts = yard.rollout(), yard.gateway.rolling.attempts["r1"]
    for wave in range(rollout.waves):
        of_wave = [a for a in attempts.values() if a.wave == wave]
        failed, heard = sum(a.state == "failed" for a in of_wave), sum(a.state != "skipped" for a in of_wave)
        later = [a for a in attempts.values() if a.wave > wave and a.asked_ms]
        if later:
            assert all(a.over for a in of_wave)
            assert 100 * failed <= stop_at * heard
            assert any(a.state == "successful" for a in of_wave)
            assert max(a.ended_ms for a in of_wave) <= min(a.asked_ms for a in later)
    if per_hour:
        times = sorted(at for at, _, _ in yard.asked)
        for first, last in itertools.combinations(range(len(times)), 2):
            assert last - first <= (times[last] - times[first] + 1000) * per_hour / 3_600_000 + 1
    if rollout.state == "finished":
        assert all(a.over for a in attempts.values())
    if rollout.state == "stopped":
        assert rollout.why
    assert yard.store.load(0.0).attempts["r1"] == attempts


def test_it_is_stored_before_it_is_said() -> None:
    """The attempt and its command are of one event: one transaction."""
    yard = Yard().add("a")
    yard.ask("rollout-start", rollout="r1", groups=["100%"], per_hour=0, stop_at="10", deadline_s=3600)
    effects = yard.handle(Tick(now_ms=yard.now_ms))
    said = next(i for i, e in enumerate(effects) if isinstance(e, Send) and isinstance(e.message, DeviceCommand))
    assert isinstance(effects[said], Send)
    (saved,) = of_kind(effects, SaveAttempt)
    assert saved.attempt == replace(yard.attempt("a"), state="asked")
