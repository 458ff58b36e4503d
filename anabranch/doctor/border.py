"""Who gets in, and what they may see: TLS, the clock, anonymous clients, others' topics, `$SYS`."""

import datetime as dt
import secrets
import socket
import ssl
from dataclasses import replace

from cryptography import x509

from anabranch.doctor.findings import Finding
from anabranch.doctor.lab import Lab
from anabranch.doctor.probe import Probe, RefusedError, Version, Where
from fl_protocol.codec import decode_as
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import GatewayState

WARN_DAYS = 30


def tls(where: Where, now: dt.datetime) -> list[Finding]:
    """What is spoken, and how long the broker's certificate lasts by this machine's clock."""
    if where.tls is None:
        return [
            Finding(
                "TLS",
                "warning",
                "the connection is in clear text",
                "whoever is on the way reads and changes everything, passwords too; signatures protect the models only",
                "`mqtts://` with --ca; `python -m deploy gateway up` sets up such a broker",
            )
        ]
    try:
        with (
            socket.create_connection((where.host, where.port), 10) as plain,
            where.tls.wrap_socket(plain, server_hostname=where.host) as wrapped,
        ):
            spoken, cipher, der = wrapped.version(), wrapped.cipher(), wrapped.getpeercert(binary_form=True)
    except (OSError, ssl.SSLError) as error:
        return [Finding("TLS", "fails", str(error), "no client gets in", "see the name and the --ca that you gave")]
    certificate = x509.load_der_x509_certificate(der or b"")
    days = (certificate.not_valid_after_utc - now).days
    found = [Finding("TLS", "works", f"{spoken}, {cipher[0] if cipher else 'unknown cipher'}")]
    if days < WARN_DAYS:
        found.append(
            Finding(
                "broker's certificate",
                "warning",
                f"valid for {days} days more",
                "after that no device gets in",
                "renew it: `python -m deploy gateway renew`",
            )
        )
    else:
        found.append(Finding("broker's certificate", "works", f"valid for {days:,} days more, by this clock"))
    return found


def clock(lab: Lab, now: dt.datetime) -> list[Finding]:
    """This clock against what a gateway last said, where that can be read."""
    with lab.probe("clock") as probe:
        probe.subscribe("fl/1/+/gw/state")
        probe.wait(lambda: any(_said_at(s.payload) for s in probe.messages), 2.0)
        times = [at for said in probe.messages if (at := _said_at(said.payload))]
    this = now.timestamp()
    if not times:
        return [Finding("clock", "unknown", f"{now:%Y-%m-%d %H:%M:%S} UTC here; no gateway's word to compare it with")]
    ahead = max(times) - this
    if ahead > 5:
        return [
            Finding(
                "clock",
                "fails",
                f"this clock is {ahead:.0f} s or more behind a gateway's",
                "certificates may seem not to be valid yet",
                "let the network set it (`timedatectl set-ntp true`)",
            )
        ]
    return [Finding("clock", "works", f"{now:%Y-%m-%d %H:%M:%S} UTC here, not behind what a gateway said")]


def _said_at(payload: bytes) -> float | None:
    try:
        return decode_as(GatewayState, payload).ts / 1000 or None
    except ProtocolError:
        return None


def strangers(where: Where, version: Version, answer_s: float) -> list[Finding]:
    """Whether someone without user name or certificate gets in."""
    if where.username is None and where.tls is None:
        stranger = where
    else:
        bare = where.tls and _without_certificate(where.tls)
        stranger = replace(where, username=None, password=None, tls=bare)
    try:
        with Probe(stranger, f"anabranch-doctor-{secrets.token_hex(4)}", version=version, answer_s=answer_s) as probe:
            # With TLS 1.3 a client hears that its certificate is missing only after its handshake.
            probe.wait(lambda: probe.ended, 0.5)
            if probe.ended:
                raise RefusedError(probe.ended)
    except (OSError, RefusedError) as error:
        return [Finding("strangers", "works", f"a client without credentials is refused ({error})")]
    return [
        Finding(
            "strangers",
            "warning",
            "a client without user name or certificate is let in",
            "anyone who reaches this port may pretend to be a device",
            "`allow_anonymous false` and certificates: `python -m deploy gateway up`; fine on a desk",
        )
    ]


def _without_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    bare = ssl.create_default_context()
    bare.check_hostname, bare.verify_mode = context.check_hostname, context.verify_mode
    for der in context.get_ca_certs(binary_form=True):
        bare.load_verify_locations(cadata=der)
    return bare


def others(lab: Lab) -> list[Finding]:
    """Whether we read what another client says on a device's topic: of a fleet that does not exist."""
    topic = f"fl/1/doctor-{secrets.token_hex(4)}/dev/another/up/offer"
    with lab.probe("spy") as spy, lab.probe("victim") as victim:
        spy.subscribe(topic.replace("another", "+"))
        victim.publish(topic, b"secret")
        read = spy.wait(lambda: spy.messages, 2.0)
    if read:
        return [
            Finding(
                "others' topics",
                "warning",
                "this client writes any device's topics, and reads them",
                "one device can read another's updates and forge its state; the updates themselves are signed",
                "an access list by user name (docs/protocol.md); `python -m deploy gateway up` writes one",
            )
        ]
    return [Finding("others' topics", "works", "what is said on another device's topics is not heard by this client")]


def system_topics(lab: Lab) -> list[Finding]:
    """What the broker says of itself."""
    names = ("version", "clients/connected", "publish/messages/dropped")
    with lab.probe("sys") as probe:
        for name in names:
            probe.subscribe(f"$SYS/broker/{name}", 0)
        probe.wait(lambda: len(probe.messages) >= len(names), 2.0)
        said = {s.topic.removeprefix("$SYS/broker/"): s.payload.decode("utf-8", "replace") for s in probe.messages}
    if not said:
        return [Finding("$SYS", "unknown", "the broker says nothing of itself, or not to this client")]
    return [Finding("$SYS", "works", "; ".join(f"{name}: {text}" for name, text in sorted(said.items())))]
