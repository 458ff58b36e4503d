"""A device with a byte budget: what it begins, what it still sends, how coarse it is, and what it says of it."""

import logging
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
)

NOON = 20_000 * DAY_S + DAY_S / 2
VERSION = len(blob_of(1))  # 29 kB; an update takes 2 kB
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
    """By its exit status; asked again after half a minute, without a shell."""
    now = 0.0
    flag = tmp_path / "metered; true"
    link = MeteredLink(f"test -e '{flag}'", clock=lambda: now)
    assert not link()
    flag.touch()
    assert not link()
    now = 31.0
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
    assert len(caplog.records) == 1
