"""Virtual time: what was asked for happens, in order, once."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.world import Alarm, World

times = st.lists(st.integers(0, 20).map(float), max_size=30)


@given(times)
def test_things_happen_in_the_order_of_their_times(at) -> None:
    """Of two at one time the one that was asked for first; nothing is left out, and the clock never goes back."""
    world, happened = World(0), []
    for number, time in enumerate(at):
        world.at(time, lambda time=time, number=number: happened.append((world.now, time, number)))
    while world.step():
        pass
    assert [(time, number) for _, time, number in happened] == sorted((t, n) for n, t in enumerate(at))
    assert all(now == time for now, time, _ in happened)
    assert world.events == len(at)
    assert world.next_at == float("inf")


def test_what_should_have_happened_before_happens_now() -> None:
    """A time that is over is taken for now: the clock stands."""
    world, seen = World(0), []
    world.at(5.0, lambda: world.at(1.0, lambda: seen.append(world.now)))
    while world.step():
        pass
    assert seen == [5.0]


@given(st.integers(0, 2**32), st.integers(0, 50))
def test_what_one_draws_moves_nothing_for_another(seed, draws) -> None:
    """A generator belongs to its name: the same numbers come whatever was drawn elsewhere, and before."""
    one, other = World(seed), World(seed)
    busy = one.rng("link", "a")
    for _ in range(draws):
        busy.random()
        one.generator("link", "a").random()
    assert one.rng("link", "b").random() == other.rng("link", "b").random()
    assert one.generator("b").random() == other.generator("b").random()
    assert one.rng("a").random() != one.rng("b").random()


@given(times.filter(bool))
def test_an_alarm_rings_once_at_the_earliest_of_its_times(at) -> None:
    """Later settings do not move it, and those that are over with it do not ring."""
    world, rang = World(0), []
    alarm = Alarm(world, lambda: rang.append(world.now))
    for time in at:
        alarm.set(time)
    while world.step():
        pass
    assert rang == [min(at)]


def test_an_alarm_can_be_set_again_while_it_rings() -> None:
    """As a loop does that asks to be woken for its next turn."""
    world, rang = World(0), []

    def ring() -> None:
        rang.append(world.now)
        if len(rang) < 3:
            alarm.set(world.now + 2)

    alarm = Alarm(world, ring)
    alarm.set(1.0)
    while world.step():
        pass
    assert rang == [1.0, 3.0, 5.0]
