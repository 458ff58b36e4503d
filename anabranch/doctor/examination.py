"""The order of things: who can connect at all, then one check after another, then everything is cleared away."""

import datetime as dt
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from anabranch.doctor import border, delivery, limits
from anabranch.doctor.findings import Finding
from anabranch.doctor.lab import Lab
from anabranch.doctor.probe import Probe, RefusedError, Version, Where

DISK = Finding(
    "the broker's disk",
    "unknown",
    "what it keeps over a crash cannot be seen from here",
    "nothing of a fleet rests on it: devices and gateway say everything again; with it they say less",
    "mosquitto: `persistence true` and `autosave_interval 30`; by default it writes every half an hour",
)
HELLO_S = 5.0  # amqtt leaves an MQTT 5 CONNECT without an answer


@dataclass(frozen=True)
class Orders:
    """What to try: on which topics, and how many messages for the queue."""

    where: Where
    topic: str
    queue: int = 3000
    answer_s: float = 10.0
    version: Version | None = None


def examine(orders: Orders, now: dt.datetime, say: Callable[[str], None]) -> Iterator[Finding]:
    """One finding after another. Nothing of it stays at the broker."""
    say("TLS")
    yield from border.tls(orders.where, now)
    versions: list[Version] = [orders.version] if orders.version else ["5", "3.1.1"]
    spoken: list[Version] = []
    for version in versions:
        say(f"MQTT {version}")
        finding, probe = _greeting(orders, version)
        yield finding
        if probe:
            spoken.append(version)
            if len(spoken) == 1:
                yield limits.told(probe)
    if not spoken:
        return
    yield from border.strangers(orders.where, spoken[0], HELLO_S)
    lab = Lab(orders.where, spoken[0], orders.topic, answer_s=orders.answer_s)
    refusal = _usable(lab)
    if refusal:
        yield refusal
        return
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("retained", lambda: delivery.retained(lab)),
        ("last will", lambda: delivery.last_will(lab)),
        ("persistent session", lambda: delivery.session(lab)),
        ("QoS 1 after a cut", lambda: delivery.redelivery(lab)),
        ("packet size", lambda: limits.packet_size(lab)),
        ("messages in flight", lambda: limits.in_flight(lab)),
        ("queue", lambda: limits.queue(lab, orders.queue)),
        ("others' topics", lambda: border.others(lab)),
        ("$SYS", lambda: border.system_topics(lab)),
        ("clock", lambda: border.clock(lab, now)),
        ("the broker's disk", lambda: [DISK]),
    ]
    try:
        for name, check in checks:
            say(name)
            try:
                yield from check()
            except (OSError, RefusedError) as error:
                yield Finding(name, "unknown", f"could not be tried: {error}")
    finally:
        say("clearing away")
        left = lab.clean()
    if left:
        yield Finding(
            "clearing away", "fails", f"{len(left)} retained messages stay: {', '.join(left)}", "", "clear them"
        )


def _greeting(orders: Orders, version: Version) -> tuple[Finding, Probe | None]:
    probe = Probe(orders.where, f"anabranch-doctor-{secrets.token_hex(4)}", version=version, answer_s=HELLO_S)
    check = f"MQTT {version}"
    try:
        with probe:
            probe.wait(lambda: probe.ended, 0.3)
            if probe.ended:
                raise RefusedError(probe.ended)
    except (OSError, RefusedError) as error:
        if version == "5":
            meaning = "devices use MQTT 3.1.1 then: no limits are told, chunks are of 16 KiB"
            return Finding(check, "warning", f"no connection: {error}", meaning), None
        return Finding(
            check, "fails", f"no connection: {error}", "no client gets in", "see the log of the broker"
        ), None
    return Finding(check, "works", "connects"), probe


def _usable(lab: Lab) -> Finding | None:
    """None where two connections at once can talk on the doctor's topics."""
    topic = lab.topic("hello")
    with lab.probe("one") as one, lab.probe("two") as two:
        one.wait(lambda: one.ended, 0.5)
        if one.ended:
            return Finding(
                "client ids",
                "warning",
                "the broker gives every connection of this user the same client id",
                "that is right for devices, and leaves one connection at a time: nothing else can be tried",
                "another certificate: with `deploy gateway up` services/operator.pem on port 8885, at the gateway",
            )
        one.subscribe(topic)
        two.publish(topic, b"hello")
        if one.wait(lambda: one.messages, 3.0):
            return None
    return Finding(
        "topics",
        "fails",
        f"what is published on {lab.root}/hello is not heard there",
        "nothing else can be tried",
        "name topics that this user may write and read with --topic, or let it use these",
    )
