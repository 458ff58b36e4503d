"""Does what is said arrive: retained messages, last wills, sessions, and what a cut connection leaves undone."""

from anabranch.doctor.findings import Finding
from anabranch.doctor.lab import Lab

MESSAGES = 5


def retained(lab: Lab) -> list[Finding]:
    """Plans, manifests and states are retained; devices ask for them by exact topics, people with wildcards."""
    topic = lab.topic("retained/a", retained=True)
    with lab.probe("writer") as writer:
        writer.publish(topic, b"kept", retain=True)

    def heard(text: str, name: str) -> bool:
        with lab.probe(name) as reader:
            reader.subscribe(text)
            return reader.wait(lambda: any(s.payload == b"kept" and s.retained for s in reader.messages), 3.0)

    exact, wild = heard(topic, "exact"), heard(lab.topic("retained/+"), "wild")
    found = [
        Finding("retained, exact", "works", "a new subscriber gets the retained message")
        if exact
        else Finding(
            "retained, exact",
            "fails",
            "a new subscriber does not get the retained message",
            "a device that connects hears of no task until the gateway happens to say it again",
            "switch retained messages on (mosquitto: `retain_available true`), or take another broker",
        )
    ]
    if exact:
        found.append(
            Finding("retained, wildcards", "works", "the same by a wildcard")
            if wild
            else Finding(
                "retained, wildcards",
                "warning",
                "a wildcard subscription gets nothing retained",
                "devices subscribe to exact topics and do not mind; monitors that subscribe to wildcards see less",
                "have monitors subscribe to exact topics",
            )
        )
    return found


def last_will(lab: Lab) -> list[Finding]:
    """By its will a device that died is known to be lost."""
    topic = lab.topic("will", retained=True)
    with lab.probe("watcher") as watcher:
        watcher.subscribe(topic)
        lab.probe("dying", will=(topic, b"lost")).connect().cut()
        came = watcher.wait(lambda: watcher.messages, 10.0)
    with lab.probe("later") as later:
        later.subscribe(topic)
        kept = later.wait(lambda: later.messages, 3.0)
    if came and kept:
        return [Finding("last will", "works", "a client that dies without a word is reported, and that is retained")]
    what = "is not retained" if came else "is not published within 10 s"
    return [
        Finding(
            "last will",
            "warning" if came else "fails",
            f"the last will of a client that died {what}",
            "a dead device counts as connected: its slots are free only when their lease ends",
            "see whether the broker, or a proxy before it, holds dead connections open",
        )
    ]


def session(lab: Lab) -> list[Finding]:
    """What is said to a client that is away waits for it."""
    topic = lab.topic("session")
    with lab.probe("away", clean=False) as away:
        away.subscribe(topic)
    with lab.probe("writer") as writer:
        for number in range(MESSAGES):
            writer.publish(topic, str(number).encode())
    with lab.probe("away", clean=False) as back:
        back.wait(lambda: len(back.messages) >= MESSAGES, 5.0)
        present, came = back.session_present, len({s.payload for s in back.messages})
    if present and came == MESSAGES:
        return [
            Finding("persistent session", "works", f"{came} of {MESSAGES} messages waited for a client that was away")
        ]
    return [
        Finding(
            "persistent session",
            "fails",
            f"{came} of {MESSAGES} messages waited; session present: {'yes' if present else 'no'}",
            "what is said to a device or the gateway while it is away is lost: verdicts come late, by repeated updates",
            "allow sessions that outlive their connection (MQTT 5: a session expiry of a day and more)",
        )
    ]


def redelivery(lab: Lab) -> list[Finding]:
    """The gateway acknowledges an update once it is on its disk: until then it must come again."""
    topic = lab.topic("again")
    reader = lab.probe("reader", clean=False, holding=True).connect()
    reader.subscribe(topic)
    with lab.probe("writer") as writer:
        for number in range(MESSAGES):
            writer.publish(topic, str(number).encode())
    reader.wait(lambda: len(reader.messages) >= MESSAGES, 5.0)
    first = len({s.payload for s in reader.messages})
    reader.cut()
    with lab.probe("reader", clean=False) as back:
        back.wait(lambda: len({s.payload for s in back.messages}) >= first, 5.0)
        again = len({s.payload for s in back.messages})
    what = f"{again} of {first} messages that were not acknowledged came again after a cut connection"
    if first and again == first:
        return [Finding("QoS 1 after a cut", "works", what)]
    return [
        Finding(
            "QoS 1 after a cut",
            "fails",
            what,
            "an update that the gateway had in hand when its connection broke is lost to it, until the device sends it "
            "again by its timer (15 s to 5 min)",
            "another broker; with this one nothing is lost for good, but it takes longer",
        )
    ]
