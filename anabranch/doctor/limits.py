"""How much: bytes of a packet, messages in flight, messages that wait for a client that is away."""

from anabranch.doctor.findings import Finding, Verdict
from anabranch.doctor.lab import Lab
from anabranch.doctor.probe import Probe, RefusedError

FLOOR = 14 << 10  # bytes of a packet: plans, manifests and states have up to 12 KiB
CHUNK = 49 << 10  # a chunk of 48 KiB, with its frame
LARGEST = 257 << 10  # the largest message that is ever sent
TOP = 1 << 20
EXACT = 1 << 10  # bytes to which the limit is found
FLOOD = 200  # messages to one client that acknowledges none
WINDOW = 12  # chunks that a receiver asks for at once
PER_DEVICE = 8  # messages of one device in ten minutes without a gateway: an update six times, and two states
SMALL, BIG, BIG_COUNT = 256, 64 << 10, 64


def told(probe: Probe) -> Finding:
    """What CONNACK says (MQTT 5)."""
    if probe.version != "5":
        return Finding("limits, as told", "unknown", "MQTT 3.1.1 brokers say nothing of their limits")
    names = {
        "MaximumPacketSize": "packets up to {:,} bytes",
        "ReceiveMaximum": "{} of ours in flight",
        "MaximumQoS": "QoS {} at most",
        "SessionExpiryInterval": "sessions expire after {} s",
        "ServerKeepAlive": "keep-alive {} s",
        "RetainAvailable": "retained messages: {}",
        "WildcardSubscriptionAvailable": "wildcards: {}",
        "TopicAliasMaximum": "{} topic aliases",
    }
    said = [text.format(probe.properties[name]) for name, text in names.items() if name in probe.properties]
    if probe.properties.get("MaximumQoS") == 0:
        return Finding("limits, as told", "fails", "QoS 0 at most", "nothing is ever acknowledged", "another broker")
    return Finding("limits, as told", "works", "; ".join(said) or "none are named")


def packet_size(lab: Lab) -> list[Finding]:
    """By trying: the largest packet that is acknowledged and arrives."""
    topic = lab.topic("size")
    with lab.probe("reader") as reader:
        reader.subscribe(topic)

        def carries(size: int) -> bool:
            payload = b"\0" * (size - len(topic) - 16)
            reader.messages.clear()
            try:
                with lab.probe("writer") as writer:
                    code = writer.publish(topic, payload)
                    good = code is not None and code < 0x80 and not writer.ended
            except (OSError, RefusedError):
                return False
            return good and reader.wait(lambda: any(len(s.payload) == len(payload) for s in reader.messages), 3.0)

        low, high = (TOP, TOP) if carries(TOP) else (0, TOP)
        while high - low > EXACT:
            middle = (low + high) // 2
            low, high = (middle, high) if carries(middle) else (low, middle)
    if low >= TOP:
        return [
            Finding("packet size", "works", f"packets of {TOP:,} bytes and more; none of ours is above {LARGEST:,}")
        ]
    what = f"packets of up to about {low:,} bytes"
    name = f"`max_packet = {low // 1024 * 1024}` in [broker] of gateway and devices, or a larger limit at the broker"
    if low < FLOOR:
        return [Finding("packet size", "fails", what, "plans and states of up to 12 KiB do not pass", name)]
    if low < CHUNK:
        meaning = "objects travel in smaller chunks: more packets, more overhead"
        return [Finding("packet size", "warning", what, meaning, "" if lab.version == "5" else name)]
    return [Finding("packet size", "works", what, "chunks of 48 KiB pass; larger messages are cut", "")]


def in_flight(lab: Lab) -> list[Finding]:
    """How many QoS 1 messages a client gets that acknowledges none."""
    topic = lab.topic("flight")
    with lab.probe("reader", holding=True) as reader, lab.probe("writer") as writer:
        reader.subscribe(topic)
        sent = [writer.send(topic, str(number).encode()) for number in range(FLOOD)]
        writer.answer(sent[-1])
        reader.settle(1.0)
        window = len(reader.messages)
        reader.release()
        reader.settle(0.5)
    if window >= FLOOD:
        return [Finding("messages in flight", "works", f"{window} and more to one client")]
    what = f"{window} to one client that has acknowledged none"
    if window < WINDOW:
        return [
            Finding(
                "messages in flight",
                "warning",
                what,
                "each window costs a round trip: over a slow link transfers are slower",
                f"{WINDOW} or more (mosquitto: `max_inflight_messages`)",
            )
        ]
    return [Finding("messages in flight", "works", what)]


def queue(lab: Lab, count: int) -> list[Finding]:
    """How much waits for a client that is away: published until it drops, or until there were `count`."""
    small = _waiting(lab, "small", count, SMALL)
    found = []
    if small >= count:
        what = f"{count:,} messages wait for a client that is away, and more (--queue tries more)"
        found.append(Finding("queue, messages", "works", what, _devices(count)))
    else:
        verdict: Verdict = "warning" if small >= 1000 else "fails"
        mend = "a longer queue for the gateway's session (mosquitto: `max_queued_messages 10000`)"
        what = f"{small:,} of {count:,} messages waited for a client that was away; the broker acknowledged all"
        found.append(Finding("queue, messages", verdict, what, _devices(small), mend))
    if small < BIG_COUNT:
        return found  # the number of messages is what holds
    big = _waiting(lab, "big", BIG_COUNT, BIG)
    if big >= BIG_COUNT:
        found.append(Finding("queue, bytes", "works", f"{big * BIG >> 20} MiB in messages of 64 KiB wait, and more"))
    else:
        found.append(
            Finding(
                "queue, bytes",
                "warning",
                f"{big} of {BIG_COUNT} messages of 64 KiB waited: about {big * BIG >> 10:,} KiB",
                f"with updates of 20 KiB that is {max(1, big * BIG // (PER_DEVICE * 20 << 10))} devices in ten minutes "
                "without a gateway; what is dropped, devices send again",
                "more bytes for a session (mosquitto: `max_queued_bytes`, `memory_limit`)",
            )
        )
    return found


def _devices(limit: int) -> str:
    if limit < PER_DEVICE:
        return "what is said to a gateway that is away is lost, and said again by the devices: updates come late"
    return (
        f"a gateway that was away for ten minutes finds all of about {limit // PER_DEVICE:,} devices "
        f"({PER_DEVICE} messages each: {limit * 20 >> 10:,} MiB with updates of 20 KiB); of more the queue "
        "overflows, and what is dropped is sent again by its device"
    )


def _waiting(lab: Lab, name: str, count: int, size: int) -> int:
    topic = lab.topic(f"queue/{name}")
    with lab.probe(f"queue-{name}", clean=False) as away:
        away.subscribe(topic)
    with lab.probe("writer") as writer:
        for number in range(count):
            mid = writer.send(topic, number.to_bytes(4, "big") + b"\0" * (size - 4))
            if number % 50 == 49 or number == count - 1:
                writer.answer(mid)
    with lab.probe(f"queue-{name}", clean=False) as back:
        back.settle(2.0)
        return len({said.payload[:4] for said in back.messages})
