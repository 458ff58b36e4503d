"""A day's bytes, as arithmetic: what may begin, what may be sent, when a day ends, what a crash forgets."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.budget import DAY_S, MB, OVERHEAD, RESERVE, Budget, BudgetConfig, Spent

MONDAY = 20_000  # a day since 1970
NOON = MONDAY * DAY_S + DAY_S / 2


@dataclass
class Machine:
    """A device that begins only what it may, its disk, and its clock; `by_day` is what truly passed the socket."""

    config: BudgetConfig
    local_s: float | None = NOON
    metered: bool = False
    now: float = 0.0
    counted: int = 0
    disk: Spent = field(default_factory=Spent)
    saves: int = 0
    by_day: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process, on what the disk holds."""
        self.counted = 0
        self.budget = Budget(self.config, self.disk)
        self.look()

    def wait(self, seconds: float) -> None:
        """Time passes, awake."""
        self.now += seconds
        self.local_s = None if self.local_s is None else self.local_s + seconds
        self.look()

    def look(self) -> None:
        """Sensors are read."""
        self.budget.count(self.counted, 0, self.now)
        self.budget.measure(self.metered, self.local_s, self.now)
        self.save()

    def spend(self, num_bytes: int) -> None:
        """So much passes the socket."""
        self.counted += num_bytes
        day = int((self.local_s or self.now) // DAY_S)
        self.by_day[day] = self.by_day.get(day, 0) + num_bytes
        self.budget.count(self.counted, 0, self.now)
        self.save()

    def save(self) -> None:
        """What is to be saved is on the disk before anything more happens."""
        if (spent := self.budget.take_save()) is not None:
            self.disk, self.saves = spent, self.saves + 1

    def fetch(self, size: int) -> bool:
        """A download, if there is room."""
        room = self.budget.room(0)
        if room is not None and size > room:
            return False
        self.spend(int(size * OVERHEAD))
        return True

    def turn(self, size: int) -> bool:
        """A training, and its update as soon as that may be sent: an update of the size that was allowed, or of its
        codec's least."""
        if not self.budget.may_begin():
            return False
        allowed = self.budget.next_update()
        size = size if allowed is None else max(min(size, allowed), size // 10)
        self.budget.made(size, self.now)
        if self.budget.may_send(size):
            self.spend(int(size * OVERHEAD))
        return True


def limited(daily_mb: float = 1.0, **rest: object) -> BudgetConfig:
    """A budget of a megabyte a day."""
    return BudgetConfig(daily_mb=daily_mb, **rest)  # type: ignore[arg-type]


DEEDS = st.one_of(
    st.tuples(st.just("fetch"), st.integers(1, 2_000_000)),
    st.tuples(st.just("turn"), st.integers(1, 400_000)),
    st.tuples(st.just("wait"), st.integers(1, 100_000)),
    st.tuples(st.just("crash"), st.just(0)),
    st.tuples(st.just("end"), st.just(0)),
)


def do(machine: Machine, deed: str, amount: int) -> None:
    """One thing that happens to a device."""
    match deed:
        case "fetch":
            machine.fetch(amount)
        case "turn":
            machine.turn(amount)
        case "wait":
            machine.wait(amount)
        case "crash":
            machine.start()
        case "end":
            machine.disk = machine.budget.close() or machine.disk
            machine.start()


@given(st.lists(DEEDS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_what_it_lets_begin_never_costs_more_than_budget_and_reserve(deeds: list[tuple[str, int]]) -> None:
    """On each calendar day, whatever is fetched, trained, killed, ended and started again."""
    machine = Machine(limited())
    for deed in deeds:
        do(machine, *deed)
        assert max(machine.by_day.values(), default=0) <= MB * (1 + RESERVE)


@given(st.lists(DEEDS, max_size=60))
@settings(max_examples=200, deadline=None)
def test_without_a_clock_a_day_is_24_hours_awake(deeds: list[tuple[str, int]]) -> None:
    """As many budgets as days have begun, restarts in between or not."""
    machine = Machine(limited(), local_s=None)
    for deed in deeds:
        do(machine, *deed)
    days = 1 + int(machine.now // DAY_S)
    assert sum(machine.by_day.values()) <= days * MB * (1 + RESERVE)


@given(st.lists(st.one_of(DEEDS, st.tuples(st.just("step"), st.integers(-200_000, 200_000))), max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_clock_that_steps_gives_one_budget_a_day_that_it_names(deeds: list[tuple[str, int]]) -> None:
    """Back to a day that was: nothing is given. Forward: that day's. Only what 24 hours awake have earned is more."""
    machine = Machine(limited())
    days = {MONDAY}
    for deed, amount in deeds:
        if deed == "step":
            machine.local_s = max(0.0, (machine.local_s or 0.0) + amount)
            machine.look()
        else:
            do(machine, deed, amount)
        days.add(int((machine.local_s or 0.0) // DAY_S))
    earned = int(machine.now // DAY_S)
    assert sum(machine.by_day.values()) <= (len(days) + earned) * MB * (1 + RESERVE)


def test_a_clock_set_back_gives_no_second_budget_until_24_hours_have_passed() -> None:
    """Then the clock was wrong before: the day begins anew by its word."""
    machine = Machine(limited())
    machine.spend(1_000_000)
    assert not machine.budget.may_begin()
    machine.local_s = NOON - 10 * DAY_S
    machine.look()
    assert not machine.budget.may_begin()
    machine.wait(DAY_S - 1)
    assert not machine.budget.may_begin()
    machine.wait(2)
    assert machine.budget.may_begin()
    assert machine.budget.spent.day == MONDAY - 9


def test_midnight_begins_a_new_day() -> None:
    """By the local clock, and between two measurements too."""
    machine = Machine(limited())
    machine.spend(1_000_000)
    machine.wait(DAY_S / 2 - 1)
    assert not machine.budget.may_begin()
    machine.budget.count(machine.counted, 0, machine.now + 2)
    assert machine.budget.may_begin()
    assert machine.budget.spent == Spent(MONDAY + 1)
    assert machine.budget.days == 1


def test_a_clock_that_comes_later_keeps_what_was_spent_before() -> None:
    """A Pi has none until the network gives it one: the bytes before that are of the day that it then names."""
    machine = Machine(limited(), local_s=None)
    machine.spend(600_000)
    machine.local_s = NOON
    machine.look()
    assert (machine.budget.spent.day, machine.budget.spent.total) == (MONDAY, 600_000)


def test_a_crash_forgets_nothing_and_books_two_percent_too_much() -> None:
    """The disk is ahead of the socket; a hundred crashes of a few bytes each use the day up."""
    machine = Machine(limited())
    machine.spend(1000)
    machine.start()
    assert machine.budget.spent.total == 20_000
    for _ in range(100):
        machine.spend(10)
        machine.start()
    assert not machine.budget.may_begin()
    assert sum(machine.by_day.values()) == 2000


def test_an_orderly_end_is_booked_exactly() -> None:
    """Nothing ahead: a device that is started each morning loses nothing by it."""
    machine = Machine(limited())
    machine.spend(123_456)
    do(machine, "end", 0)
    assert machine.budget.spent.total == 123_456


def test_a_day_costs_the_flash_some_fifty_writes() -> None:
    """Whatever the pace at which bytes are spent; and one an hour, by which a day without a clock goes on."""
    machine = Machine(limited())
    for _ in range(10_000):
        machine.spend(100)
    assert 40 <= machine.saves <= 52
    idle = Machine(limited(), local_s=None)
    for _ in range(24 * 60 - 1):
        idle.wait(60)
    assert idle.saves <= 25


def test_power_cuts_do_not_make_a_used_day_long() -> None:
    """Every 50 minutes, on a machine without a clock: of each life a sixth is forgotten at most, once it is used up."""
    machine = Machine(limited(), local_s=None)
    machine.spend(1_000_000)
    while not machine.budget.may_begin():
        for _ in range(50):
            machine.wait(60)
        machine.start()
    assert DAY_S <= machine.now <= 1.3 * DAY_S


def test_a_used_day_that_a_clock_ends_is_written_once_an_hour() -> None:
    """The calendar needs no help; without one it is six times an hour, and once while there are bytes left."""
    saves = {}
    for local_s, spent in ((NOON, 1_000_000), (None, 1_000_000), (None, 1000)):
        machine = Machine(limited(), local_s=local_s)
        machine.spend(spent)
        before = machine.saves
        for _ in range(6 * 60):
            machine.wait(60)
        saves[local_s, spent] = machine.saves - before
    assert saves == {(NOON, 1_000_000): 6, (None, 1_000_000): 36, (None, 1000): 6}


def test_no_limit_books_nothing_and_allows_everything() -> None:
    """The default: the plan's codec, no write, no bound."""
    machine = Machine(BudgetConfig())
    machine.spend(10**12)
    budget = machine.budget
    assert (budget.left, budget.room(0), budget.next_update(), budget.tightest, machine.saves) == (None,) * 4 + (0,)
    assert budget.may_begin()
    assert budget.may_send(10**12)
    assert not budget.counts


def test_an_update_under_way_may_use_the_reserve() -> None:
    """Begun within the limit, sent a little beyond it; no further."""
    machine = Machine(limited())
    machine.spend(1_000_000)
    assert not machine.budget.may_begin()
    assert machine.budget.room(0) == 0
    assert machine.budget.may_send(90_000)
    assert not machine.budget.may_send(100_000)
    machine.spend(100_000)
    assert machine.budget.room(0) == -1


@given(st.integers(1, 1_200_000), st.integers(1, 1_200_000), st.integers(0, 60_000), st.sampled_from([None, NOON]))
@settings(max_examples=200, deadline=None)
def test_what_fits_a_day_comes_to_pass(update: int, version: int, idle: int, local_s: float | None) -> None:
    """Whatever a version and an update take beside the few bytes of each day: within four days each passes twice, or
    it is said that no day has room for it."""
    machine = Machine(limited(), local_s=local_s)
    if machine.budget.never(update) or version > (MB - idle) / OVERHEAD:
        return
    done = {"version": 0, "update": 0}
    pending = here = False
    for _ in range(4 * 24):
        if machine.now % DAY_S == 0:
            machine.spend(idle)
        if not pending and not here and version <= (machine.budget.room(0, version) or 0):
            machine.spend(int(version * OVERHEAD))
            here = True
            done["version"] += 1
        if here and machine.budget.may_begin():
            machine.budget.made(update, machine.now)
            here, pending = False, True
        if pending and machine.budget.may_send(update):
            machine.spend(int(update * OVERHEAD))
            pending = False
            done["update"] += 1
        machine.wait(3600)
    assert min(done.values()) >= 2
    assert max(machine.by_day.values()) <= MB * (1 + RESERVE)


def test_a_download_leaves_room_for_an_update_unless_no_day_has_room_for_both() -> None:
    """Then it may take all; but not before what is here has become an update."""
    machine = Machine(limited())
    machine.budget.made(500_000, machine.now)
    both = int(MB / OVERHEAD) - 500_000
    assert machine.budget.room(0, both) == machine.budget.room(0) == both
    assert machine.budget.why(both + 1) == (
        "0.452 MB wait for the next update: today's byte budget has no room for both"
    )
    assert machine.budget.room(0, both + 1) == int(MB / OVERHEAD)
    assert machine.budget.room(100_000, both + 1) == int(MB / OVERHEAD) - 100_000


def test_an_update_that_no_day_has_room_for_is_known_by_its_size() -> None:
    """With its framing, within the limit alone: the reserve is for the rest of such a day."""
    budget = Machine(limited(metered_daily_mb=0.5), metered=True).budget
    assert not budget.never(476_000)
    assert budget.never(476_200) == (
        "more than a day's budget of a metered link: 476200 of 500000 bytes, with 5 % for framing; "
        "raise metered_daily_mb or take another codec"
    )
    assert not budget.never(476_200, on_any_link=True)
    assert "raise daily_mb" in budget.never(952_400, on_any_link=True)
    assert not Machine(BudgetConfig()).budget.never(10**9)


def test_an_update_near_the_limit_does_not_keep_the_next_from_beginning() -> None:
    """A day that has just begun always has room for a training, though a reconnect has cost a little of it."""
    machine = Machine(limited())
    machine.budget.made(950_000, machine.now)
    machine.spend(90_000)
    assert machine.budget.may_begin()
    assert machine.budget.may_send(950_000)
    machine.spend(20_000)
    assert not machine.budget.may_begin()


# --- how large an update may be ----------------------------------------------------------------------------------


def turns(machine: Machine, number: int, *, size: int, other: int, seconds: float) -> None:
    """So many updates, with what else a turn costs."""
    for _ in range(number):
        machine.budget.made(size, machine.now)
        machine.spend(size + other)
        machine.wait(seconds)


def test_what_is_left_is_spread_over_the_turns_that_are_left() -> None:
    """At noon 12 turns of an hour are left of a day with 940 kB: 78 kB a turn, 60 kB of which go down."""
    machine = Machine(limited(10.0), local_s=NOON - 4 * 3600)
    turns(machine, 4, size=5000, other=60_000, seconds=3600)
    machine.spend(8_800_000)  # something else, in the turn that is not over
    assert machine.budget.next_update() == pytest.approx((940_000 / 12) - 60_000, abs=2)


def test_a_budget_that_allows_more_than_the_codec_wants_is_no_bound() -> None:
    """At a turn an hour, a megabyte gives each update more than it takes: the codec is asked for less than it may."""
    machine = Machine(limited())
    turns(machine, 3, size=5000, other=1000, seconds=3600)
    assert (machine.budget.next_update() or 0) > 50_000


def test_an_update_is_not_made_smaller_than_an_eighth_of_the_rest_of_a_turn() -> None:
    """Where a turn a minute cannot be had all day, a coarser update would buy hardly one more, and cost accuracy."""
    machine = Machine(limited())
    turns(machine, 4, size=1000, other=20_000, seconds=60)
    assert machine.budget.next_update() == 2500


def test_the_first_update_takes_an_eighth_of_what_is_left() -> None:
    """Nothing was measured yet."""
    assert Machine(limited()).budget.next_update() == 125_000


def test_an_upload_takes_a_quarter_of_a_turn_where_the_link_is_known() -> None:
    """8 kbit/s are 1000 bytes a second; a turn of 40 s has 10 s for the upload. Without a turn nothing is known."""
    machine = Machine(BudgetConfig(up_kbit_s=8))
    assert machine.budget.next_update() is None
    turns(machine, 3, size=5000, other=0, seconds=40)
    assert machine.budget.next_update() == 10_000


def test_rest_is_no_turn() -> None:
    """The night that a device sleeps through for want of bytes does not make its turns long."""
    machine = Machine(limited())
    turns(machine, 3, size=5000, other=1000, seconds=100)
    before = machine.budget.next_update() or 0
    machine.budget.rested()
    machine.wait(5000)
    machine.budget.made(5000, machine.now)
    assert before < (machine.budget.next_update() or 0) < 1.5 * before  # 14 times, if that were a turn


# --- metered -----------------------------------------------------------------------------------------------------


def test_a_metered_link_is_the_coarsest_and_has_its_own_limit() -> None:
    """What passed while the link was free does not count there; the rest of the day's limit does."""
    machine = Machine(limited(10.0, metered_daily_mb=1.0))
    machine.spend(5_000_000)
    machine.metered = True
    machine.look()
    assert machine.budget.next_update() == 0
    assert machine.budget.left == 1_000_000
    machine.spend(1_000_000)
    assert not machine.budget.may_begin()
    assert "budget of a metered link is used: 1 of 1 MB" in machine.budget.why()
    machine.metered = False
    machine.look()
    assert machine.budget.left == 4_000_000


def test_a_large_object_waits_for_a_link_that_is_free() -> None:
    """`metered_object_mb` alone is no limit of the day."""
    machine = Machine(BudgetConfig(metered_object_mb=0.5), metered=True)
    assert machine.budget.room(0) == 500_000
    assert machine.budget.may_begin()
    assert machine.budget.why(600_000) == "0.6 MB wait for a link that is not metered"
    machine.metered = False
    machine.look()
    assert machine.budget.room(0) is None


def test_the_reason_is_for_people() -> None:
    """Used, of how much, and until when; and what no day has room for."""
    machine = Machine(limited(5.0))
    machine.spend(5_010_000)
    machine.wait(9.2 * 3600)
    assert machine.budget.why() == "today's byte budget is used: 5 of 5 MB; free again in 3 h"
    machine.wait(2.5 * 3600)
    assert machine.budget.why().endswith("free again within an hour")
    assert machine.budget.why(6_000_000) == "6 MB are more than a day's byte budget of 5 MB has room for"
