"""What a fleet's messages show: the view that the demo's screen and its story live on."""

from anabranch.fleet_view import FleetView, filters
from fl_protocol.codec import encode
from fl_protocol.messages import (
    DeviceEvent,
    DeviceState,
    GatewayState,
    Health,
    Message,
    Prediction,
    ReleaseMetrics,
    Result,
    TaskStatus,
)
from fl_protocol.topics import Kind, build


def topic(kind: Kind) -> str:
    """A topic of one device and task."""
    ids = {"device": "fan-1", "task": "fans"}
    return build(kind, "fleet", **{name: value for name, value in ids.items() if f"{{{name}}}" in kind.value})


def seen(*messages: tuple[Kind, Message]) -> FleetView:
    """The view after these messages."""
    view = FleetView()
    for kind, message in messages:
        view.take(topic(kind), encode(message))
    return view


def state(name: str, version: int | None = None) -> tuple[Kind, Message]:
    """A device's state message."""
    return Kind.STATE, DeviceState(state=name, boot=1, bseq=1, version=version)


def result(seq: int, verdict: str, repeat: bool = False) -> tuple[Kind, Message]:
    """A verdict."""
    return Kind.RESULT, Result(task="fans", incarnation="0" * 16, seq=seq, verdict=verdict, repeat=repeat)


def test_a_device_is_what_it_said_last():
    """State and version; a state without a version keeps the one before."""
    device = seen(state("training", 3), state("uploading", 4), state("ready")).devices["fan-1"]
    assert (device.state, device.version, device.connected) == ("ready", 4, True)


def test_a_lost_device_keeps_its_last_words():
    """The state that it died in is what the will itself cannot say."""
    device = seen(state("training"), state("lost")).devices["fan-1"]
    assert (device.last_words, device.connected) == ("training", False)


def test_verdicts_are_counted_once():
    """A repeat is the same verdict again."""
    device = seen(result(1, "accepted"), result(1, "accepted", repeat=True), result(2, "stale")).devices["fan-1"]
    assert device.verdicts == {"accepted": 1, "stale": 1}


def test_bytes_are_added_up_over_restarts():
    """A process counts from zero; after a restart its first report is all new."""
    reports = [(100, 1000), (150, 1500), (20, 200), (30, 200)]
    device = seen(*((Kind.HEALTH, Health(bytes_up=up, bytes_down=down)) for up, down in reports)).devices["fan-1"]
    assert (device.bytes_up, device.bytes_down, device.healths) == (180, 1700, 4)


def test_tasks_releases_and_gateway_are_seen():
    """The pages that the screen shows."""
    view = seen(
        (Kind.STATUS, TaskStatus(task="fans", state="running", version=2)),
        (Kind.METRICS, ReleaseMetrics(task="fans", version=1, value=0.5)),
        (Kind.METRICS, ReleaseMetrics(task="fans", version=2, value=0.7)),
        (Kind.GATEWAY, GatewayState(state="ready", boot=1, bseq=1)),
        (Kind.PREDICTION, Prediction(task="fans", version=2, label="normal", probability=0.9)),
    )
    assert view.tasks["fans"].version == 2
    assert [r.value for r in view.releases["fans"]] == [0.5, 0.7]
    assert view.gateway is not None
    assert view.devices["fan-1"].prediction is not None


def test_a_cleared_status_is_a_task_that_is_gone():
    """An empty retained payload means cleared."""
    view = seen((Kind.STATUS, TaskStatus(task="fans", state="running")))
    view.take(topic(Kind.STATUS), b"")
    assert view.tasks == {}


def test_news_are_told_once():
    """Events are taken, oldest first, and not again."""
    view = seen(*((Kind.EVENT, DeviceEvent(event=f"event {i}")) for i in range(3)))
    assert [event.event for _, event in view.take_news()] == ["event 0", "event 1", "event 2"]
    assert view.take_news() == []


def test_rubbish_changes_nothing():
    """Foreign topics and unreadable payloads are somebody else's problem."""
    view = FleetView()
    for name, payload in (("foreign/topic", b"{}"), (topic(Kind.STATE), b"\xff"), (topic(Kind.STATUS), b'{"task": 1}')):
        view.take(name, payload)
    assert view == FleetView()


def test_the_filters_cover_what_the_view_takes():
    """Each kind that changes the view is subscribed to, with wildcards for ids only."""
    names = {name for name, _ in filters("fleet")}
    for kind in (Kind.STATE, Kind.HEALTH, Kind.RESULT, Kind.STATUS, Kind.METRICS, Kind.GATEWAY, Kind.PREDICTION):
        assert topic(kind).replace("fan-1", "+").replace("fans", "+") in names
