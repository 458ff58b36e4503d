"""A machine's program runs, dies between any two effects, and starts again."""

from io import StringIO

from anabranch.simulator.host import FALLEN_S, Host, Scene
from anabranch.simulator.trace import Speaker, Trace
from anabranch.simulator.world import World


class Counting(Host):
    """A program with one effect a second, which falls at `falls_at`."""

    def __init__(self, *, falls_at: int = -1, excused: bool = False) -> None:
        world, self.complaints = World(0), []
        super().__init__(Scene(world, Trace(world, StringIO()), Speaker(), self.complaints.append), "machine")
        self.effects, self.falls, self.log = [], [], []
        self.falls_at, self.excused = falls_at, excused

    def start(self) -> None:
        self.log.append(("starts", self.world.now))

    def work(self) -> float:
        self.crash_point(f"effect {len(self.effects)}")
        if len(self.effects) == self.falls_at:
            self.falls_at = -1
            raise ValueError("a bug")
        self.effects.append(self.world.now)
        return self.world.now + 1

    def fall(self, death, *, noticed) -> None:
        self.log.append((death, self.world.now))
        assert noticed == (death == "kill")

    def excuse(self, _error: Exception) -> bool:
        return self.excused

    def run(self, until: float) -> None:
        """Let time pass."""
        while self.world.next_at <= until:
            self.world.step()
        self.world.now = until


def test_it_dies_just_before_the_effect_that_the_schedule_says_and_starts_again() -> None:
    """Exactly so many more effects happen, and `down_s` later the machine is there again."""
    host = Counting()
    host.boot()
    host.run(0.5)
    host.kill("power", after=3, down_s=10.0)
    host.run(20.5)
    assert host.effects == [0.0, 1.0, 2.0, 3.0, *(float(second) for second in range(14, 21))]
    assert host.log == [("starts", 0.0), ("power", 4.0), ("starts", 14.0)]
    assert host.boots == 2
    assert host.complaints == []


def test_it_can_die_at_rest_and_leave_for_good() -> None:
    """Whoever left does not start again, not even when told."""
    host = Counting()
    host.boot()
    host.run(0.5)
    host.kill("kill", down_s=2.0)
    host.run(2.0)
    assert not host.up
    host.run(3.0)
    assert host.up
    host.leave()
    host.boot()
    host.run(100.0)
    assert not host.up
    assert host.gone
    assert host.boots == 2


def test_a_program_that_falls_by_itself_has_broken_an_invariant() -> None:
    """Unless it may; either way it is started again, as systemd does."""
    for excused, complaints in ((False, ["machine fell: ValueError: a bug"]), (True, [])):
        host = Counting(falls_at=2, excused=excused)
        host.boot()
        host.run(2.0 + FALLEN_S)
        assert host.complaints == complaints
        assert host.log == [("starts", 0.0), ("kill", 2.0), ("starts", 2.0 + FALLEN_S)]


def test_who_sleeps_does_nothing_until_it_wakes() -> None:
    """Also when two things hold it: it goes on after the last of them."""
    host = Counting()
    host.boot()
    host.run(0.5)
    host.sleep()
    host.sleep()
    host.run(5.0)
    host.wake()
    host.run(6.0)
    assert host.effects == [0.0]
    host.wake()
    host.run(7.5)
    assert host.effects == [0.0, 6.0, 7.0]
