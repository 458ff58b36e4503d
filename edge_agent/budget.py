"""How many bytes a device may spend a day, and what it does with them: pure arithmetic, no clock and no socket.

    the socket's counters, the local clock -> `Spent` -> left of today
        -> may this begin?  may what is under way be sent?  how large may the next update be?

Two bounds hold. What begins (a download, a training) must fit into what is left of the day's limit; what is under way
may also use the reserve, 10 % of the limit, so that an update reaches the gateway and its verdict comes back. What
costs bytes without being begun here (a connection, the state, a word from the gateway) is booked, and shortens the day.
An update that fits into no day is not made: it would wait for ever, and every training after it.

The day is the local calendar's. A machine without a clock counts 24 hours from its first use, of the time that it is
awake. A clock that steps back never gives a second budget for one day; one that is still behind after 24 hours was
wrong before, and the day begins anew by its word.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from msgspec import Meta

NotNegative = Annotated[float, Meta(ge=0)]

MB = 1_000_000  # as contracts for links count
DAY_S = 86400.0
RESERVE = 0.1  # of the limit
OVERHEAD = 1.05  # of an object's bytes: topics, framing and chunk headers, and a chunk that comes twice
STEP = 0.02  # of the limit, in which it is told: a word for each byte would cost the next
AHEAD = 0.02  # of the limit, booked on the disk before it is spent
SAVE_S = 3600.0  # how much of a day a restart may lose,
SAVE_USED_S = 600.0  # and of one that is used up, where no clock ends it: power cuts may be frequent
UPLOAD_SHARE = 0.25  # of a turn, that an upload may take where the link's rate is known
LEAST_SHARE = 0.125  # of what a turn costs besides: a smaller update saves hardly anything, and costs accuracy
FIRST_SHARE = 0.125  # of what is left, for an update before a turn was measured
FOLLOW = 0.25  # the weight of the newest turn in a following mean


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What bytes may cost; the section `[budget]` of the device's configuration. A megabyte is 10^6 bytes."""

    daily_mb: NotNegative = 0.0  # sent and received together; 0: no limit
    metered: str = "no"  # "yes", or a command whose exit status 0 says so
    metered_daily_mb: NotNegative = 0.0  # of what passes while the link is metered; 0: no limit of its own
    metered_object_mb: NotNegative = 0.0  # a larger bundle or version waits for a free link; 0: none waits
    up_kbit_s: NotNegative = 0.0  # what the link carries up; 0: not known, and no matter

    @property
    def limits(self) -> bool:
        """Whether any day has a limit."""
        return bool(self.daily_mb or self.metered_daily_mb)


@dataclass(frozen=True)
class Spent:
    """What passed the socket today, in bytes both ways; what the disk remembers of it.

    `day` counts the local calendar's days since 1970, None while the machine has no clock; `elapsed_s` is how long the
    device has been awake in it.
    """

    day: int | None = None
    elapsed_s: float = 0.0
    total: int = 0
    metered: int = 0  # of the total, over a metered link

    def plus(self, num_bytes: int, metered: bool) -> "Spent":
        """So many bytes later."""
        return replace(self, total=self.total + num_bytes, metered=self.metered + num_bytes * metered)

    def at(self, local_s: float | None, passed_s: float) -> "Spent":
        """`passed_s` later, when the local clock says `local_s` (None: there is none): today still, or a new day."""
        today = None if local_s is None else int(local_s // DAY_S)
        later = replace(self, elapsed_s=self.elapsed_s + max(0.0, passed_s))
        if today is not None and self.day is not None and today > self.day:
            return Spent(today)
        if (today is None or today != self.day) and later.elapsed_s >= DAY_S:
            return Spent(today)
        return replace(later, day=today) if self.day is None else later


class Limit(NamedTuple):
    """One limit of today, in bytes, and what is spent of it."""

    of: str
    most: int
    used: int
    setting: str  # of the configuration


class Budget:
    """What today cost, and what may still be spent. Without limits everything may, and nothing is written."""

    def __init__(self, config: BudgetConfig, spent: Spent) -> None:
        self._config = config
        self.spent = self._saved = spent
        self.days = 0  # that have begun since this start
        self.metered = False
        self._counted = 0  # by the socket since this start
        self._local: tuple[float, float] | None = None  # what the local clock said, and when
        self._at: float | None = None
        self._size = self._other = self._turn_s = 0.0  # following means: an update, the rest of a turn, its seconds
        self._last: tuple[float, int, int] | None = None  # when the last update was made, bytes counted, its size

    # --- what is told ---

    def configure(self, config: BudgetConfig) -> None:
        """Other limits, from now on; what is spent is spent."""
        self._config = config

    def count(self, bytes_up: int, bytes_down: int, now: float) -> None:
        """The socket's counters since this start; `now` is a clock that only grows."""
        self._pass(now)
        new, self._counted = max(0, bytes_up + bytes_down - self._counted), bytes_up + bytes_down
        self.spent = self.spent.plus(new, self.metered)

    def measure(self, metered: bool | None, local_s: float | None, now: float) -> None:
        """What the sensors say: whether bytes cost, and the local clock in seconds."""
        self.metered, self._local = bool(metered), None if local_s is None else (local_s, now)
        self._pass(now)

    def made(self, size: int, now: float) -> None:
        """An update of `size` bytes was made. From one to the next is a turn: that is what a turn costs."""
        self._size = _follow(self._size, size)
        if self._last is not None:
            made_at, counted, last_size = self._last
            self._turn_s = _follow(self._turn_s, now - made_at)
            self._other = _follow(self._other, max(0, self._counted - counted - last_size))
        self._last = now, self._counted, size

    def rested(self) -> None:
        """The device stood still for want of bytes: what passes until the next update is no measure of a turn."""
        self._last = None

    def take_save(self) -> Spent | None:
        """What the disk is to hold from now on, if what it holds has been outrun; else None.

        It is booked ahead, by 2 % of the limit: a crash forgets nothing, a crash loop cannot spend without end, and a
        day's spending costs the flash some fifty writes. A start after a crash counts what was booked as spent.
        """
        spent, saved = self.spent, self._saved
        every_s = SAVE_S if self._clock_left_s is not None or self.may_begin() else SAVE_USED_S
        if not self._config.limits or not (
            spent.day != saved.day
            or spent.total > saved.total
            or spent.metered > saved.metered
            or not 0 <= spent.elapsed_s - saved.elapsed_s < every_s
        ):
            return None
        ahead = int(AHEAD * min(limit.most for limit in self._limits(metered=True)))
        self._saved = spent.plus(ahead, True)
        return self._saved

    def close(self) -> Spent | None:
        """What the disk is to hold when the device ends in good order: nothing ahead. None without a limit."""
        self._saved = self.spent
        return self.spent if self._config.limits else None

    # --- what is asked ---

    @property
    def counts(self) -> bool:
        """Whether it has to be told what passes between two measurements."""
        return self._config.limits

    @property
    def left(self) -> int | None:
        """Bytes of today's limit that are left, never below 0; None without a limit."""
        return None if (limit := self.tightest) is None else max(0, limit.most - limit.used)

    @property
    def tightest(self) -> Limit | None:
        """The limit with least left; None without one."""
        return min(self._limits(), key=lambda limit: limit.most - limit.used, default=None)

    def room(self, promised: int, alone: int = 0) -> int | None:
        """Bytes that an object may have whose download begins now, when `promised` bytes of others are under way.

        What follows a download is an update: it has to fit as well. Where no day has room for both, an object of
        `alone` bytes may take all that is left, and the update waits for the next day; 0: one that is to be made of
        what is here comes first. None: any; -1: not even what is under way goes on.
        """
        rooms = []
        if (left := self.left) is not None:
            both = alone and alone + self._usual > (self._day or 0) / OVERHEAD
            rooms.append(max(0, int(left / OVERHEAD - promised - (0 if both else self._usual))))
            if not self.may_send(1):
                return -1
        if most := self._metered_object:
            rooms.append(most)
        return min(rooms, default=None)

    def may_begin(self) -> bool:
        """Whether a training may begin: an update of the usual size has room, its framing aside."""
        left = self.left
        return left is None or (left > 0 and left >= self._usual)

    def may_send(self, size: int) -> bool:
        """Whether `size` bytes of what is under way may be sent: the reserve is for that."""
        most = self.sendable
        return most is None or size <= most

    @property
    def sendable(self) -> int | None:
        """Bytes of what is under way that may be sent today, the reserve included; None: any number."""
        return None if (most := self._hard_left()) is None else int(most / OVERHEAD)

    def never(self, size: int, *, on_any_link: bool = False) -> str:
        """Why no day has room for an update of `size` bytes, for people; empty where one has.

        The limits are those that hold now; with `on_any_link` those that a link which is not metered has, too. The
        reserve is left for what else passes on such a day.
        """
        for limit in self._limits():
            if size * OVERHEAD > limit.most and not (on_any_link and limit.setting != "daily_mb"):
                much = f"{size} of {limit.most} bytes, with {round(100 * (OVERHEAD - 1))} % for framing"
                return f"more than a day's {limit.of}: {much}; raise {limit.setting} or take another codec"
        return ""

    def next_update(self) -> int | None:
        """Bytes that the next update may have, all in all; None: as many as the plan's codec makes of it.

        What is left of the budget is spread over the turns that are left of the day, less what a turn costs besides,
        but not below an eighth of that; and an upload takes a quarter of a turn at most, where the link's rate is
        known. Over a metered link it is 0: the coarsest that the codec has.
        """
        if self.metered:
            return 0
        caps = []
        if (left := self.left) is not None:
            share = left * FIRST_SHARE if not self._turn_s else left / self._turns_left() - self._other
            caps.append(max(share, LEAST_SHARE * self._other))
            caps.append(self.sendable or 0)
        if self._config.up_kbit_s and self._turn_s:
            caps.append(self._config.up_kbit_s * 125 * UPLOAD_SHARE * self._turn_s)
        return max(0, int(min(caps))) if caps else None

    def why(self, size: int = 0) -> str:
        """Why nothing more is begun today, or an object of `size` bytes is not fetched; for people."""
        if self._metered_object and size > self._metered_object:
            return f"{size / MB:.3g} MB wait for a link that is not metered"
        if (limit := self.tightest) is None:
            return ""
        if size > limit.most / OVERHEAD:
            return f"{size / MB:.3g} MB are more than a day's {limit.of} of {limit.most / MB:g} MB has room for"
        if size and size * OVERHEAD <= limit.most - limit.used:
            return f"{size / MB:.3g} MB wait for the next update: today's {limit.of} has no room for both"
        hours = math.ceil(self.day_left_s / 3600)
        until = f"in {hours} h" if hours > 1 else "within an hour"
        used = f"{STEP * round(limit.used / limit.most / STEP) * limit.most / MB:.3g} of {limit.most / MB:g} MB"
        return f"today's {limit.of} is used: {used}; free again {until}"

    @property
    def day_left_s(self) -> float:
        """Seconds until a new day begins, as far as its clock tells."""
        by_clock = self._clock_left_s
        return max(0.0, DAY_S - self.spent.elapsed_s) if by_clock is None else by_clock

    # --- inside ---

    @property
    def _clock_left_s(self) -> float | None:
        """Seconds until the clock begins a new day; None where it does not know this one."""
        if self._local is None or self._at is None:
            return None
        local_s = self._local[0] + self._at - self._local[1]
        return DAY_S - local_s % DAY_S if int(local_s // DAY_S) == self.spent.day else None

    def _pass(self, now: float) -> None:
        """Time passes; with a new day the books are empty."""
        local_s = None if self._local is None else self._local[0] + now - self._local[1]
        later = self.spent.at(local_s, 0.0 if self._at is None else now - self._at)
        self._at = now
        if later.elapsed_s < self.spent.elapsed_s or (self.spent.day is not None and later.day != self.spent.day):
            self.days += 1
        self.spent = later

    def _limits(self, *, metered: bool = False) -> list[Limit]:
        """The limits that hold now; with `metered` as if the link were."""
        config, spent = self._config, self.spent
        limits = [Limit("byte budget", round(config.daily_mb * MB), spent.total, "daily_mb")]
        if self.metered or metered:
            most = round(config.metered_daily_mb * MB)
            limits.append(Limit("budget of a metered link", most, spent.metered, "metered_daily_mb"))
        return [limit for limit in limits if limit.most]

    @property
    def _day(self) -> int | None:
        """What the tightest of whole days has; None without a limit."""
        return min((limit.most for limit in self._limits()), default=None)

    @property
    def _usual(self) -> float:
        """The usual size of an update, but never so much that a day which has just begun had no room for one."""
        day = self._day
        return self._size if day is None else min(self._size, day * (1 - RESERVE))

    @property
    def _metered_object(self) -> int:
        return round(self._config.metered_object_mb * MB) if self.metered else 0

    def _hard_left(self) -> int | None:
        limits = self._limits()
        return min((max(0, int(limit.most * (1 + RESERVE)) - limit.used) for limit in limits), default=None)

    def _turns_left(self) -> float:
        return max(1.0, self.day_left_s / self._turn_s)


def _follow(mean: float, newest: float) -> float:
    return newest if not mean else mean + FOLLOW * (newest - mean)
