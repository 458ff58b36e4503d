"""The demo's story: who plays which part, and what happens when."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.demo.story import AWAY, JOIN_AT, KILL_AT, KILL_GATEWAY_AT, LEAVE_AT, Act, Cast, Story, draw_cast
from anabranch.fleet_view import DeviceView, FleetView
from fl_protocol.messages import GatewayState

DEVICES = [f"fan-{n}" for n in range(17)]
CAST = Cast(slow=("fan-1",), killed="fan-2", leaves="fan-3", late="fan-4")


def view(state: str = "ready", gateway: str = "ready") -> FleetView:
    """A fleet whose killed one is in `state`."""
    seen = DeviceView("fan-2", state=state)
    return FleetView(devices={"fan-2": seen}, gateway=GatewayState(state=gateway, boot=1, bseq=1))


@given(st.integers(2, 17), st.integers(0, 2**32))
def test_the_cast_is_drawn_from_the_seed_and_leaves_somebody_to_train(count, seed):
    """The same seed draws the same cast; parts are distinct, and at least one device has none."""
    devices = DEVICES[:count]
    cast = draw_cast(devices, seed)
    assert cast == draw_cast(devices, seed)
    parts = [name for name in (*cast.slow, cast.killed, cast.leaves, cast.late) if name]
    assert len(set(parts)) == len(parts) == min(5, count - 1)
    assert set(parts) < set(devices)


def test_a_whole_fleet_has_two_slow_devices_and_one_of_each_other_part():
    """What issue 2 asks of the demo."""
    cast = draw_cast(DEVICES, 0)
    assert len(cast.slow) == 2
    assert cast.killed
    assert cast.leaves
    assert cast.late


def test_other_seeds_draw_other_casts():
    """The parts do depend on the seed."""
    assert len({draw_cast(DEVICES, seed) for seed in range(10)}) > 5


def test_each_act_comes_once_and_at_its_time():
    """Over a whole run each thing happens once, in the order of its share of the training."""
    story, done = Story(CAST), []
    for percent in range(101):
        progress = percent / 100
        killed = "kill" in [act.deed for _, act in done]
        for act in story.next(view("lost" if killed else "training"), progress):
            done.append((progress, act))
    assert [act for _, act in done] == [
        Act("kill", "fan-2"),
        Act("join", "fan-4"),
        Act("restart", "fan-2"),
        Act("leave", "fan-3"),
    ]
    at = {act.deed: progress for progress, act in done}
    assert at["kill"] >= KILL_AT
    assert at["join"] >= JOIN_AT
    assert at["leave"] >= LEAVE_AT
    assert at["restart"] >= at["kill"] + AWAY


def test_the_kill_waits_for_mid_training():
    """A device that waits or uploads is not killed; the moment that it trains it is."""
    story = Story(Cast(killed="fan-2"))
    for state in ("ready", "uploading", "sleeping"):
        assert list(story.next(view(state), 0.9)) == []
    assert list(story.next(view("training"), 0.9)) == [Act("kill", "fan-2")]


def test_a_killed_device_comes_back_only_when_it_was_missed():
    """The restart waits until the broker has published the last will."""
    story = Story(Cast(killed="fan-2"))
    list(story.next(view("training"), 0.5))
    assert list(story.next(view("training"), 0.9)) == []
    assert list(story.next(view("lost"), 0.9)) == [Act("restart", "fan-2")]


def test_the_gateway_is_killed_only_when_asked_for_and_comes_back_when_missed():
    """`--kill-gateway`: once, and a restart after its last will."""
    assert list(Story(Cast()).next(view(), 1.0)) == []
    story = Story(Cast(), kill_gateway=True)
    assert list(story.next(view(), KILL_GATEWAY_AT - 0.01)) == []
    assert list(story.next(view(), KILL_GATEWAY_AT)) == [Act("kill gateway")]
    assert list(story.next(view(), 0.5)) == []
    assert story.owes_the_gateway
    assert list(story.next(view(gateway="lost"), 0.5)) == [Act("restart gateway")]
    assert not story.owes_the_gateway
    assert list(story.next(view(), 0.9)) == []
