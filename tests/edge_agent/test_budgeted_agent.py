"""A device with a byte budget: what it begins, what it still sends, how coarse it is, and what it says of it."""

import hashlib
import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent import events as e
from edge_agent.budget import DAY_S, BudgetConfig, Spent
from edge_agent.config import load_config
from edge_agent.gate import Reading
from edge_agent.metered import MeteredLink
from fl_protocol.compression.pipeline import make_compressor
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Grant, Health, Offer, Update
from fl_protocol.topics import Kind
from tests.edge_agent.rig import (
    BUNDLE,
    BUNDLE_BYTES,
    TASK,
    Rig,
    all_of,
    blob_of,
    complaints,
    result_of,
    sent,
    states,
    the,
    topic,
    updates,
    vector_of,
)

NOON = 20_000 * DAY_S + DAY_S / 2
VERSION = len(blob_of(1))  # 29 kB; an update takes 2 kB
TOO_LITTLE = 0.0308  # MB: room for a version, and none for a plain update
BROADCAST = topic(Kind.BROADCAST, version="+")


class Metered(Rig):
    """A rig whose transport counts, at noon."""

    def __init__(self, daily_mb: float = 0.0, *, metered: bool | None = None, **rest: object) -> None:
        self.up = 0
        super().__init__(budget=BudgetConfig(daily_mb=daily_mb, **rest))  # type: ignore[arg-type]
        self.measure(NOON, metered)

    def restart(self) -> None:
        """The transport counts from zero."""
        self.up = 0
        super().restart()

    def measure(self, local_s: float | None = NOON, metered: bool | None = None) -> list[e.Effect]:
        """Sensors are read."""
        return self.do(e.Measured(Reading(local_s=local_s, metered=metered), bytes_up=self.up))

    def spend(self, num_bytes: int) -> list[e.Effect]:
        """So much passed the socket."""
        self.up += num_bytes
        return self.do(e.Counted(self.up, 0))


def update_of(rig: Rig, version: int = 1) -> Update:
    """The update that a rig makes of a version."""
    (update,) = updates(rig.train(rig.ready_to_train(version)))
    return update


# --- the budget is used ------------------------------------------------------------------------------------------


def test_when_it_is_used_nothing_begins_and_the_state_says_until_when() -> None:
    """`sleeping`, with the figures; one event; no training, no fetch, no broadcast, no health."""
    rig = Metered(1.0)
    rig.verdict(update_of(rig), "accepted")
    effects = rig.spend(1_000_000)
    state = states(effects)[-1]
    assert (state.state, state.why) == (
        "sleeping",
        "today's byte budget is used: 1 of 1 MB; free again in 12 h",
    )
    assert [c.message for c in complaints(effects)] == [state.why]
    assert BROADCAST in the(e.Unsubscribe, effects).filters
    effects = rig.announce(2) + rig.wait(1000) + rig.broadcast(2) + rig.spend(1000)
    assert not all_of(e.Train, effects)
    assert not sent(Kind.GET, effects)
    assert not sent(Kind.HEALTH, effects)
    assert not complaints(effects)


def test_with_the_next_day_it_goes_on() -> None:
    """Midnight by the local clock: it listens again, and trains the newest version."""
    rig = Metered(1.0)
    rig.verdict(update_of(rig), "accepted")
    rig.spend(1_000_000)
    effects = rig.measure(NOON + DAY_S)
    assert BROADCAST in [name for subscribe in all_of(e.Subscribe, effects) for name, _ in subscribe.filters]
    effects = rig.announce(2) + rig.broadcast(2)
    assert the(e.Train, effects).task == TASK
    assert states(effects)[-1].state == "training"


def test_an_update_in_flight_is_sent_within_the_reserve_and_settles() -> None:
    """Used while it trains: the update goes out, its verdict comes, and then it rests."""
    rig = Metered(1.0)
    order = rig.ready_to_train(1)
    rig.spend(1_000_000)
    (update,) = updates(rig.train(order))
    rig.verdict(update, "accepted")
    assert not rig.restored.pending
    assert rig.restored.residuals
    assert states(rig.asked)[-1].state == "sleeping"


def test_beyond_the_reserve_an_update_waits_for_the_next_day() -> None:
    """The same bytes then; until then nothing of it is sent, and the device does not spin."""
    rig = Metered(1.0)
    order = rig.ready_to_train(1)
    rig.spend(1_099_700)
    assert not updates(rig.train(order))
    assert states(rig.asked)[-1].state == "sleeping"
    assert not updates(rig.wait(3600))
    assert rig.agent.wake_at > rig.now
    effects = rig.measure(NOON + DAY_S)
    (update,) = updates(effects + rig.wait(1))
    assert update.base_version == 1


def test_chunks_of_an_update_are_not_granted_beyond_the_reserve() -> None:
    """The gateway's grant has no answer; the offer comes again with the next day."""
    rig = Metered(1.0)
    rig.connect(max_packet=1024)
    rig.train(rig.ready_to_train(1))
    offer = sent(Kind.OFFER, rig.asked)[-1].message
    assert not isinstance(offer, bytes)
    assert isinstance(offer, Offer)
    rig.spend(1_099_999)
    grant = Grant(sha256=offer.sha256, answer="go", window=4, missing=b"\x1f")
    assert not sent(Kind.CHUNK_UP, rig.hear(Kind.GRANT, grant))
    rig.measure(NOON + DAY_S)
    assert sent(Kind.OFFER, rig.wait(400))
    assert sent(Kind.CHUNK_UP, rig.hear(Kind.GRANT, grant))


def test_a_grant_is_answered_with_what_there_is_room_for() -> None:
    """Two chunks of 512 bytes with their framing, where the gateway asks for four; no offer without room for one."""
    rig = Metered(1.0)
    rig.connect(max_packet=1024)
    rig.train(rig.ready_to_train(1))
    offer = sent(Kind.OFFER, rig.asked)[-1].message
    assert isinstance(offer, Offer)
    rig.spend(1_097_500)
    grant = Grant(sha256=offer.sha256, answer="go", window=4, missing=b"\x0f")
    assert len(sent(Kind.CHUNK_UP, rig.hear(Kind.GRANT, grant))) == 2
    rig.spend(2_100)
    assert not sent(Kind.CHUNK_UP, rig.hear(Kind.GRANT, grant))
    assert not sent(Kind.OFFER, rig.wait(3600))
    rig.measure(NOON + DAY_S)
    assert sent(Kind.OFFER, rig.wait(400))
    assert len(sent(Kind.CHUNK_UP, rig.hear(Kind.GRANT, grant))) == 4


def test_a_version_without_room_is_not_fetched() -> None:
    """29 kB, and 20 kB are left: neither asked for nor listened to."""
    rig = Metered(1.0)
    rig.verdict(update_of(rig), "accepted")
    effects = rig.spend(980_000)
    assert states(effects)[-1].state == "sleeping"
    assert BROADCAST in the(e.Unsubscribe, effects).filters
    assert not sent(Kind.GET, rig.announce(2) + rig.wait(1000))


def test_a_version_that_was_begun_is_finished() -> None:
    """There was room as it began; its own bytes do not take that away."""
    rig = Metered(1.0)
    rig.verdict(update_of(rig), "accepted")
    rig.spend(960_000)
    effects = rig.announce(2) + rig.wait(3)
    assert sent(Kind.GET, effects)
    rig.spend(17_000)
    effects = rig.serve(blob_of(2))
    assert the(e.Train, effects)


def test_a_bundle_that_no_day_has_room_for_is_told() -> None:
    """It is not begun; the operator hears the figures."""
    rig = Metered(0.02)
    rig.connect()
    rig.desire(TASK)
    effects = rig.plan() + rig.wait(10)
    assert not sent(Kind.GET, effects)
    assert states(effects)[-1].why == (
        f"{len(BUNDLE_BYTES) / 1e6:.3g} MB are more than a day's byte budget of 0.02 MB has room for"
    )


# --- what no day has room for -----------------------------------------------------------------------------------


def on_the_disk(rig: Rig, *versions: int) -> None:
    """The bundle and these versions are there already."""
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    for version in versions:
        blob = blob_of(version)
        rig.objects[hashlib.sha256(blob).hexdigest()] = blob


def test_an_update_that_no_day_has_room_for_is_not_made() -> None:
    """The training has failed, with the figures and what to do; a plan whose codec fits is trained by at once."""
    rig = Metered(TOO_LITTLE)
    rig.connect()
    rig.desire(TASK)
    on_the_disk(rig, 1)
    rig.plan(codec={"name": "none"})
    effects = rig.train(the(e.Train, rig.announce(1)))
    assert not all_of(e.SaveUpdate, effects)
    state = states(effects)[-1]
    assert state.state == "sleeping"
    assert "more than a day's byte budget: " in state.why
    assert "of 30800 bytes, with 5 % for framing; raise daily_mb or take another codec" in state.why
    assert [c.code for c in complaints(effects)] == ["E_QUOTA"]
    order = the(e.Train, rig.plan(revision=2, codec={"name": "uq", "step": "8"}))
    assert updates(rig.train(order))


def test_what_is_refused_for_its_size_leaves_no_trace() -> None:
    """Neither residual nor number: the same version is trained from again."""
    rig = Metered(TOO_LITTLE)
    rig.connect()
    rig.desire(TASK)
    on_the_disk(rig, 1)
    rig.plan(codec={"name": "none"})
    rig.train(the(e.Train, rig.announce(1)))
    again = the(e.Train, rig.wait(61))
    np.testing.assert_array_equal(again.base, vector_of(1))
    assert (rig.restored.seq, rig.restored.trained, rig.restored.residuals) == (0, {}, {})


def test_a_stored_update_that_no_day_has_room_for_is_given_up() -> None:
    """The operator lowered the budget: it is settled as refused, once, on the disk; the next version is trained."""
    rig = Metered(1.0)
    rig.connect(max_packet=1024)
    rig.train(rig.ready_to_train(1, codec={"name": "none"}))
    (pending,) = rig.restored.pending
    rig.budget = BudgetConfig(daily_mb=0.02)
    rig.restart()
    effects = rig.measure()
    result = the(e.Settle, effects).result
    assert (result.verdict, result.code, result.seq) == ("rejected", "E_QUOTA", pending.seq)
    assert "update 1 is not sent: more than a day's byte budget" in complaints(effects)[0].message
    assert not rig.restored.pending
    np.testing.assert_array_equal(rig.restored.residuals[TASK].vector, pending.if_refused)
    rig.connect()
    rig.desire(TASK)
    on_the_disk(rig, 2)
    rig.measure(NOON + DAY_S)  # what was booked ahead for a larger budget has used today's
    effects = rig.plan(codec={"name": "uq", "step": "8"}, revision=2) + rig.announce(2)
    assert updates(rig.train(the(e.Train, effects)))


def test_a_gateways_verdict_after_it_was_given_up_changes_nothing() -> None:
    """A verdict that was on its way all the time, or a forged counter: the ledger has one line."""
    rig = Metered(1.0)
    (update,) = updates(rig.train(rig.ready_to_train(1, codec={"name": "none"})))
    rig.budget = BudgetConfig(daily_mb=0.02)
    rig.restart()
    rig.connect()
    rig.desire(TASK)
    assert not all_of(e.Settle, rig.verdict(update, "accepted"))


def test_an_update_larger_than_a_metered_day_waits_for_a_free_link_and_says_so() -> None:
    """It is not given up, for the link may be free tomorrow; on the metered link itself none such is made."""
    rig = Metered(metered_daily_mb=TOO_LITTLE, metered=False)
    rig.connect()
    order = rig.ready_to_train(1, codec={"name": "none"})
    rig.measure(metered=True)
    effects = rig.train(order)
    assert not all_of(e.SaveUpdate, effects)
    assert "raise metered_daily_mb" in states(effects)[-1].why
    rig.measure(metered=False)
    rig.train(the(e.Train, rig.wait(61)))
    rig.budget = BudgetConfig(metered_daily_mb=0.02)
    rig.restart()
    rig.measure(metered=True)
    rig.connect()
    rig.desire(TASK)
    rig.wait(400)
    assert rig.restored.pending
    state = states(rig.asked)[-1]
    assert (state.state, state.why) == (
        "sleeping",
        "0.0296 MB are more than a day's budget of a metered link of 0.02 MB has room for",
    )
    assert rig.delivered(rig.measure(metered=False) + rig.wait(1))


def test_a_version_and_an_update_that_no_day_has_room_for_take_turns() -> None:
    """29 kB each, 40 kB a day: one day it fetches, the next it sends; within budget and reserve on each."""
    rig = Metered(0.04)
    rig.connect()
    rig.desire(TASK)
    on_the_disk(rig, 0)
    rig.plan(codec={"name": "none"})
    spent, fetched, made = 0, [], []
    effects = rig.announce(0)
    for day in range(1, 9):
        for hour in range(1, 24):
            effects += rig.announce(24 * day + hour) if hour == 12 else []
            for order in all_of(e.Train, effects):
                effects = rig.train(order)
            if sent(Kind.GET, effects):
                fetched.append(day)
                spent += len(blob_of(24 * day + 12))
                rig.spend(len(blob_of(24 * day + 12)))
                effects = rig.serve(blob_of(24 * day + 12 if hour >= 12 else 24 * day - 12))
                for order in all_of(e.Train, effects):
                    effects += rig.train(order)
            for update in rig.delivered(effects):
                made.append(day)
                rig.spend(29_900)
                effects = rig.verdict(update, "accepted")
            effects = rig.wait(3600)
            assert rig.agent._budget.spent.total <= 44_000
        rig.now += 3600
        effects = rig.measure(NOON + day * DAY_S)
    assert len(fetched) >= 3
    assert len(made) >= 3


def test_what_is_spent_survives_a_restart() -> None:
    """On the disk before anything more is begun, and read at the next start."""
    rig = Metered(1.0)
    rig.connect()
    assert rig.spend(1_000_000)[0] == e.SaveSpent(Spent(20_000, 0.0, 1_020_000, 20_000))
    rig.restart()
    rig.measure(NOON)
    rig.connect()
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan()
    assert not all_of(e.Train, rig.announce(1) + rig.wait(1000) + rig.broadcast(1))
    assert states(rig.asked)[-1].state == "sleeping"


def test_an_orderly_end_books_what_was_spent_exactly() -> None:
    """SIGTERM: the disk holds the socket's count."""
    rig = Metered(1.0)
    rig.connect()
    rig.spend(5000)
    rig.do(e.Stop())
    assert rig.restored.spent.total == 5000


def test_a_disk_that_is_full_stops_training_until_the_books_are_kept() -> None:
    """Else a crash could forget them."""
    rig = Metered(1.0)
    rig.connect()
    rig.disk_full = True
    rig.spend(30_000)
    rig.disk_full = False
    rig.desire(TASK)
    rig.objects[BUNDLE.sha256] = BUNDLE_BYTES
    rig.plan()
    assert not all_of(e.Train, rig.announce(1) + rig.broadcast(1))
    assert all_of(e.Train, rig.wait(31))


def test_health_tells_what_of_the_day_is_spent() -> None:
    """Two figures where there is a budget, none where there is none."""
    for rig, figures in ((Metered(1.0), (250_000, 1_000_000)), (Metered(), (None, None))):
        rig.connect()
        rig.spend(250_000)
        health = sent(Kind.HEALTH, rig.wait(60))[-1].message
        assert isinstance(health, Health)
        assert (health.bytes_today, health.bytes_allowed) == figures


# --- the rate ----------------------------------------------------------------------------------------------------


def test_without_budget_and_meter_an_update_has_the_plans_bits() -> None:
    """To the byte what a device makes that has never heard of budgets, whatever passed its socket."""
    rig, other = Metered(), Rig()
    rig.spend(10**9)
    mine, others = (the(e.SaveUpdate, each.train(each.ready_to_train(1))) for each in (rig, other))
    assert mine.update.sealed == others.update.sealed
    assert not all_of(e.SaveSpent, rig.asked)


def test_a_tight_budget_makes_an_update_coarser() -> None:
    """The first one may have an eighth of what is left; it says the plan's codec, by which it is read."""
    roomy, tight = update_of(Metered(100.0)), Metered(0.1)
    order = tight.ready_to_train(1)
    tight.spend(88_000)
    (update,) = updates(tight.train(order))
    (saved,) = tight.restored.pending
    assert len(saved.sealed) + len(topic(Kind.UPDATE)) <= 12_000 / 8
    assert len(update.payload) < len(roomy.payload) * 0.7
    assert update.codec == roomy.codec == {"name": "uq", "step": "1.0"}
    read = make_compressor(update.codec, BUNDLE.layout).decompress(update.payload)
    delta = result_of(order.base).parameters - order.base[: len(read)]
    assert read @ delta > 0
    np.testing.assert_allclose(read + saved.if_accepted, delta, atol=1e-6)


def test_a_codec_without_a_range_stays_as_it_is() -> None:
    """float16 takes two bytes a value, and waits for the next day if it must."""
    rig = Metered(0.1)
    order = rig.ready_to_train(1, codec={"name": "float16"})
    rig.spend(90_000)
    (update,) = updates(rig.train(order))
    assert len(update.payload) == 2 * BUNDLE.layout.num_parameters


def test_a_metered_link_takes_the_coarsest_rate_without_any_budget() -> None:
    """Half the bytes and less; the residual keeps what was left out."""
    free, metered = Metered(metered=False), Metered(metered=True)
    fine, coarse = update_of(free), update_of(metered)
    assert len(coarse.payload) < len(fine.payload) / 2
    norms = [np.linalg.norm(rig.restored.pending[0].if_accepted) for rig in (metered, free)]
    assert norms[0] > norms[1]


def test_a_large_object_waits_while_the_link_is_metered() -> None:
    """A bundle above `metered_object_mb`: not asked for, told; and fetched as soon as the link is free."""
    rig = Metered(metered_object_mb=0.02, metered=True)
    rig.connect()
    rig.desire(TASK)
    effects = rig.plan() + rig.wait(10)
    assert not sent(Kind.GET, effects)
    assert states(effects)[-1].why.endswith("MB wait for a link that is not metered")
    effects = rig.measure(NOON, metered=False)
    assert sent(Kind.GET, effects)


# --- what the operator writes ------------------------------------------------------------------------------------

CONFIG = """
[device]
id = "fan-1"
fleet = "plant"
[gateway]
public_key = "{key}"
[data]
path = "data"
[budget]
daily_mb = 5.0
metered = {metered}
"""


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], BudgetConfig]:
    """The budget as a file with this `metered` gives it."""

    def read(metered: str) -> BudgetConfig:
        path = tmp_path / "agent.toml"
        path.write_text(CONFIG.format(key="0" * 64, metered=metered))
        return load_config(path, {"ANABRANCH_BUDGET__METERED_DAILY_MB": "1"}).budget

    return read


def test_the_budget_is_read(configured: Callable[[str], BudgetConfig]) -> None:
    """From the section, and the environment."""
    assert configured('"yes"') == BudgetConfig(daily_mb=5.0, metered="yes", metered_daily_mb=1.0)


@pytest.mark.parametrize("metered", ['"Yes"', '""', '"no-such-program --now"', '"sh -c \'x"', "true", "-1"])
def test_a_metered_that_is_no_answer_and_no_program_is_refused(
    configured: Callable[[str], BudgetConfig], metered: str
) -> None:
    """At the start, with what may stand there."""
    with pytest.raises(ConfigError, match=r"budget\.metered"):
        configured(metered)


def test_a_command_says_whether_the_link_is_metered(tmp_path: Path) -> None:
    """By its exit status, the first time at once; asked again after half a minute, without a shell."""
    now = 0.0
    flag = tmp_path / "metered; true"
    link = MeteredLink(f"test -e '{flag}'", clock=lambda: now)
    assert not link()
    flag.touch()
    assert not link()
    now = 31.0
    link()
    link.wait()
    assert link()
    assert MeteredLink("yes")()
    assert not MeteredLink("no")()


def test_a_command_that_does_not_answer_leaves_the_link_metered(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That costs accuracy, the other mistake money; one warning."""
    monkeypatch.setattr("edge_agent.metered.ANSWER_S", 0.1)
    now = 0.0
    link = MeteredLink("sleep 5", clock=lambda: now)
    with caplog.at_level(logging.WARNING):
        assert link()
        now = 31.0
        assert link()
        link.wait()
        assert link()
    assert len(caplog.records) == 1


def test_nobody_waits_for_a_command_that_was_answered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device works on meanwhile, by the last answer; no second question while the first is open."""
    monkeypatch.setattr("edge_agent.metered.ANSWER_S", 1.0)
    times, slow = [0.0], tmp_path / "slow"
    script = tmp_path / "metered.sh"
    script.write_text(f'#!/bin/sh\n[ -e "{slow}" ] || exit 1\necho >> "{slow}"\nexec sleep 30\n')
    script.chmod(0o755)
    link = MeteredLink(str(script), clock=lambda: times[-1])
    assert not link()
    slow.touch()
    asked_at = time.monotonic()
    for _ in range(3):
        times.append(times[-1] + 31)
        assert not link()
    assert time.monotonic() - asked_at < 0.9
    link.wait()
    assert slow.read_text() == "\n"
    assert link()
    link.wait()


def test_a_command_that_is_killed_leaves_no_child_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's own programs go with it: what they hold open is closed."""
    monkeypatch.setattr("edge_agent.metered.ANSWER_S", 1.0)
    script, pipe = tmp_path / "metered.sh", tmp_path / "pipe"
    os.mkfifo(pipe)
    script.write_text(f'#!/bin/sh\n{{ echo; sleep 60; echo; }} > "{pipe}"\n')
    script.chmod(0o755)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert MeteredLink(str(script))()
        assert os.read(reader, 1) == b"\n"
        assert select.select([reader], [], [], 5)[0]
        assert os.read(reader, 1) == b""  # nobody can write to it any more
    finally:
        os.close(reader)
