"""The heart lets in who holds a ticket, once: claims bind to a key, names are the gateway's, refusals have a code."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from broker_aggregator.enrollment import MAX_VALID, Admission, Enrollment
from broker_aggregator.events import (
    Asked,
    Claimed,
    CloseSession,
    Effect,
    Received,
    RemoveClaim,
    SaveCertificate,
    SaveClaim,
    SaveDevice,
    Send,
    WriteRevocations,
)
from broker_aggregator.fleet import REFUSALS
from broker_aggregator.pki import Pki, make_pki
from broker_aggregator.store import SqliteStore
from fl_protocol.certificates import PrivateKey, check_issued, fingerprint, make_key, make_request
from fl_protocol.enrolling import NOTHING, claim_secret, prove, sign_renewal
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Answer, Ask, Certified, DeviceInfo, Enroll
from fl_protocol.signing import SigningKey
from tests.support.fleet import FLEET, Gateway, key_of

FLEET_KEY = SigningKey(b"f" * 32)
NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
CLAIM = "c1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder, FLEET, ["localhost"], dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC))
    return Pki(folder)


class House:
    """A gateway with an authority, and a clock in ms."""

    def __init__(self, pki: Pki, admission: Admission | None = None) -> None:
        self.gateway, self.now_ms, self.pki = Gateway(), NOW_MS, pki
        self.enrollment = Enrollment(pki, lambda c: claim_secret(FLEET_KEY, FLEET, c), admission or Admission(days=90))
        self.gateway.coordinator.enrollment = self.enrollment
        self.counter = 0

    def ask(self, name: str, **arguments: object) -> tuple[Answer, list[Effect]]:
        """An operator's command."""
        self.counter += 1
        ask = Ask(name=name, arguments=arguments, counter=self.counter)
        effects = self.gateway.handle(Asked(ask, f"c{self.counter}", now_ms=self.now_ms))
        return next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Answer)), effects

    def ticket(self, device: str = "fan-1", claim: str = CLAIM, hours: int = 1, **more: object) -> "House":
        answer, _ = self.ask("device-ticket", device=device, claim=claim, hours=hours, **more)
        assert answer.status == "successful", answer
        return self

    def claimed(self, request: Enroll, claim: str = CLAIM) -> tuple[Certified, list[Effect]]:
        """What a device is told."""
        effects = self.gateway.handle(Claimed(claim, request, self.now_ms))
        (answer,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Certified)]
        return answer, effects

    def info(self, device: str, key: SigningKey) -> list[Effect]:
        """The device speaks over its own certificate."""
        said = DeviceInfo(software="s", public_key=key.public, incarnation="0" * 16)
        return self.gateway.handle(Received(device, said))


@pytest.fixture
def house(pki) -> House:
    return House(pki)


def request(
    key: PrivateKey, device: str = "fan-1", claim: str = CLAIM, hardware: str = "", wish: str = "anything"
) -> Enroll:
    """A sound request by the holder of the claim's ticket."""
    asked = Enroll(csr=make_request(key, wish), public_key=key_of(device).public, proof=NOTHING, hardware=hardware)
    return prove(asked, claim_secret(FLEET_KEY, FLEET, claim), FLEET, claim)


def of(kind: type, effects: list[Effect]) -> Iterator[Effect]:
    return (e for e in effects if isinstance(e, kind))


def test_a_ticket_gives_a_certificate_with_the_gateways_name(house) -> None:
    """Whatever name the request wishes for."""
    key = make_key()
    answer, effects = house.ticket().claimed(request(key, wish="operator"))
    assert (answer.status, answer.device) == ("issued", "fan-1")
    authority = house.pki.authority.certificate_pem
    issued = check_issued(answer.certificate, authority, key.public_key(), "fan-1")
    assert "operator" not in issued.subject.rfc4514_string()
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [e.device for e in of(SaveDevice, effects)] == ["fan-1"]
    assert list(of(SaveCertificate, effects))
    assert house.gateway.coordinator.fleet.member("fan-1").public_key == key_of("fan-1").public


def test_the_same_key_gets_the_same_certificate_again(house) -> None:
    """A power cut between the answer and its way to the disk costs nothing."""
    key = make_key()
    first, _ = house.ticket().claimed(request(key))
    house.now_ms += 2 * HOUR_MS  # the ticket would have expired; the claim is bound
    again, effects = house.claimed(request(key))
    assert again.certificate == first.certificate
    assert not list(of(SaveCertificate, effects))


def test_a_device_whose_answer_was_lost_for_longer_than_the_certificate_lasts(house) -> None:
    """It is given another one: with one that is over it would be enrolled, and shut out for good."""
    key = make_key()
    first, _ = house.ticket().claimed(request(key))
    house.now_ms += 91 * 24 * HOUR_MS
    second, _ = house.claimed(request(key))
    assert (second.status, second.certificate != first.certificate) == ("issued", True)
    assert house.claimed(request(key))[0].certificate == second.certificate


def test_a_copy_of_the_card_is_refused_and_reported(house) -> None:
    """The claim is the first key's; the operator sees that somebody else tried, and why he was refused."""
    house.ticket().claimed(request(make_key()))
    answer, effects = house.claimed(request(make_key(), device="copy"))
    assert (answer.status, answer.code, answer.certificate) == ("refused", "E_CLAIM", "")
    (saved,) = of(SaveClaim, effects)
    assert saved.claim.refused == 1
    assert "copy" in saved.claim.why
    assert "copy" not in house.gateway.coordinator.fleet.devices


def test_a_claim_is_gone_once_its_device_was_heard(house) -> None:
    """Not before: until then the device may have to ask again."""
    key = make_key()
    house.ticket().claimed(request(key))
    assert CLAIM in house.enrollment.claims
    assert not list(of(RemoveClaim, house.info("fan-1", key_of("other"))))  # another life's word
    assert list(of(RemoveClaim, house.info("fan-1", key_of("fan-1"))))
    answer, _ = house.claimed(request(key))
    assert answer.code == "E_CLAIM"


def test_an_expired_ticket(house) -> None:
    """It is worth nothing to a key that has not asked before."""
    house.ticket(hours=1).now_ms += HOUR_MS + 1
    assert house.claimed(request(make_key()))[0].code == "E_CLAIM"


@pytest.mark.parametrize(
    "change",
    [
        {"proof": "0" * 64},
        {"public_key": key_of("thief").public},
        {"hardware": "another"},
        {"csr": make_request(make_key(), "x")},
    ],
)
def test_the_proof_covers_all_that_the_request_says(house, change) -> None:
    """Without the secret nothing of it can be changed."""
    bent = replace(request(make_key()), **change)
    assert house.ticket().claimed(bent)[0].code == "E_CLAIM"
    assert not house.enrollment.certificates


def test_a_proof_is_worth_nothing_for_another_claim(house) -> None:
    """It is over the claim's topic."""
    house.ticket().ticket(device="fan-2", claim="c2")
    assert house.claimed(request(make_key(), claim="c1"), claim="c2")[0].code == "E_CLAIM"


@pytest.mark.parametrize(
    "bad", ["", "no request", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_what_is_no_request(house, bad) -> None:
    """E_SCHEMA, and the claim is still open."""
    asked = prove(
        Enroll(csr=bad, public_key="0" * 64, proof=NOTHING), claim_secret(FLEET_KEY, FLEET, CLAIM), FLEET, CLAIM
    )
    assert house.ticket().claimed(asked)[0].code == "E_SCHEMA"
    assert house.claimed(request(make_key()))[0].status == "issued"


def test_keys_that_are_taken_and_keys_that_are_weak(pki) -> None:
    """Ed25519 and RSA of 2,048 bits are, RSA of 1,024 is not."""
    for number, (key, status) in enumerate(
        [
            (ed25519.Ed25519PrivateKey.generate(), "issued"),
            (rsa.generate_private_key(65537, 2048), "issued"),
            (rsa.generate_private_key(65537, 1024), "refused"),
        ]
    ):
        house = House(pki).ticket(device=f"d{number}")
        assert house.claimed(request(key))[0].status == status


@given(st.text(max_size=200))
def test_any_text_as_a_request(text) -> None:
    """An error of ours, never the library's."""
    from broker_aggregator.authority import read_request

    with pytest.raises(ProtocolError):
        read_request(text)


def test_approval(pki) -> None:
    """The device waits until the operator says so; the key that it asked with is what he approves."""
    house, key = House(pki, Admission(approve=True)), make_key()
    assert house.ask("device-approve", claim=CLAIM)[0].status == "failed"
    answer, _ = house.ticket().claimed(request(key))
    assert (answer.status, answer.retry_in_s > 0) == ("waiting", True)
    assert house.claimed(request(make_key()))[0].code == "E_CLAIM"  # nobody slips in while it waits
    assert house.enrollment.claims[CLAIM].key == fingerprint(key.public_key())
    assert house.ask("device-approve", claim=CLAIM)[0].status == "successful"
    assert house.claimed(request(key))[0].status == "issued"


@pytest.mark.parametrize(
    ("listed", "pinned", "told", "status"),
    [
        ({"a"}, "", "a", "issued"),
        ({"a"}, "", "b", "refused"),
        ({"a"}, "", "", "refused"),
        ({"a"}, "b", "b", "issued"),
        (set(), "b", "a", "refused"),
    ],
)
def test_the_list_of_machines(pki, listed, pinned, told, status) -> None:
    """A serial number that the ticket names stands above the gateway's list."""
    house = House(pki, Admission(hardware=frozenset(listed))).ticket(hardware=pinned)
    assert house.claimed(request(make_key(), hardware=told))[0].status == status


def test_a_withdrawn_ticket(house) -> None:
    """It is worth nothing; and one that is not there says which are."""
    house.ticket()
    assert house.ask("device-withdraw", claim=CLAIM)[0].status == "successful"
    assert house.claimed(request(make_key()))[0].code == "E_CLAIM"
    assert house.ask("device-withdraw", claim=CLAIM)[0].status == "failed"


def test_a_new_ticket_for_a_device_replaces_the_old_one(house) -> None:
    """One ticket a device."""
    house.ticket(claim="c1").ticket(claim="c2")
    assert house.claimed(request(make_key()), claim="c1")[0].code == "E_CLAIM"
    assert house.claimed(request(make_key(), claim="c2"), claim="c2")[0].status == "issued"


def test_revocation(house) -> None:
    """Its certificates are on the broker's list, its connection ends, its updates are E_AUTH."""
    issued, _ = house.ticket().claimed(request(make_key()))
    _, effects = house.ask("device-revoke", device="fan-1")
    (written,) = of(WriteRevocations, effects)
    assert [c.pem for c in written.revoked] == [issued.certificate]
    assert [e.device for e in of(CloseSession, effects)] == ["fan-1"]
    with pytest.raises(ProtocolError, match="E_AUTH"):
        house.gateway.coordinator.fleet.member("fan-1")


def test_a_revoked_device_that_was_never_heard_does_not_ask_again(house) -> None:
    """A thief who kept silent has his ticket's claim still; neither he nor a request played again brings him back."""
    asked = request(make_key())
    house.ticket().claimed(asked)
    _, effects = house.ask("device-revoke", device="fan-1")
    assert [e.claim for e in of(RemoveClaim, effects)] == [CLAIM]
    answer, effects = house.claimed(asked)
    assert (answer.status, answer.code) == ("refused", "E_CLAIM")
    assert not list(of(SaveCertificate, effects))
    with pytest.raises(ProtocolError, match="E_AUTH"):
        house.gateway.coordinator.fleet.member("fan-1")


def test_a_card_that_was_flashed_anew(house) -> None:
    """It needs `again`; its new key takes over, and what the old one had is void, but not before it asks."""
    house.ticket().claimed(request(make_key()))
    house.info("fan-1", key_of("fan-1"))
    answer, _ = house.ask("device-ticket", device="fan-1", claim="c2", hours=1)
    assert (answer.status, "--again" in answer.hint) == ("failed", True)
    house.ticket(claim="c2", again=True)
    assert not any(c.revoked_ms for c in house.enrollment.certificates.values())
    asked = request(make_key(), device="new life", claim="c2")
    answer, effects = house.claimed(asked, claim="c2")
    assert answer.status == "issued"
    (written,) = of(WriteRevocations, effects)
    assert len(written.revoked) == 1
    assert house.gateway.coordinator.fleet.member("fan-1").public_key == key_of("new life").public


def test_a_revoked_device_may_come_back_by_a_new_ticket(house) -> None:
    """The operator says so by `again`."""
    house.ticket().claimed(request(make_key()))
    house.ask("device-revoke", device="fan-1")
    house.ticket(claim="c2", again=True)
    assert house.claimed(request(make_key(), claim="c2"), claim="c2")[0].status == "issued"
    assert house.gateway.coordinator.fleet.member("fan-1")


def renewed(house: House, key: PrivateKey, signer: str = "fan-1") -> Certified:
    asked = sign_renewal(make_request(key, "x"), key_of(signer), FLEET, "fan-1")
    effects = house.gateway.handle(Received("fan-1", asked, 0, house.now_ms))
    (answer,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Certified)]
    return answer


def test_renewal(house) -> None:
    """A known device gets its next certificate; asked again by the same key, the same one; the old one stays good."""
    first, key = make_key(), make_key()
    house.ticket().claimed(request(first))
    answer = renewed(house, key)
    assert (answer.status, answer.device) == ("issued", "fan-1")
    assert renewed(house, key).certificate == answer.certificate
    assert not any(c.revoked_ms for c in house.enrollment.certificates.values())


def test_a_device_that_asks_without_end_gets_a_bounded_number_of_certificates(house) -> None:
    """Each is a row for ever, and one of the broker's list if the device is revoked; when they are over, the next."""
    house.ticket().claimed(request(make_key()))
    keys = [make_key() for _ in range(2 * MAX_VALID)]
    told = [renewed(house, key) for key in keys]
    assert [a.code for a in told if a.status == "refused"] == ["E_QUOTA"] * (MAX_VALID + 1)
    assert len(house.enrollment.certificates) == MAX_VALID
    assert renewed(house, keys[0]).certificate == told[0].certificate
    house.now_ms += 91 * 24 * HOUR_MS
    assert renewed(house, keys[-1]).status == "issued"


def test_renewal_needs_the_devices_signature(house) -> None:
    """A broker that carries another's request gets nothing by it."""
    house.ticket().claimed(request(make_key()))
    assert renewed(house, make_key(), signer="thief").code == "E_SIG"


def test_a_revoked_key_is_not_renewed(house) -> None:
    """Nor is a revoked device heard at all."""
    key = make_key()
    house.ticket().claimed(request(key))
    list(house.enrollment.revoke("fan-1", house.now_ms))
    assert renewed(house, key).code == "E_AUTH"


def test_without_an_authority_there_are_no_tickets() -> None:
    """The answer says what makes one."""
    answer = Gateway().ask("device-ticket", device="d", claim="c", hours=1)
    assert (answer.status, "gateway up" in answer.hint) == ("failed", True)


def test_claims_and_certificates_survive_a_restart(house, tmp_path: Path) -> None:
    """As the store has them, to the last field."""
    store = SqliteStore(tmp_path / "s.sqlite")
    with store.transaction():
        for effect in [*house.ticket().gateway.effects, *house.claimed(request(make_key()))[1]]:
            if isinstance(effect, SaveClaim | SaveCertificate | RemoveClaim):
                store.apply(effect, 1)
    loaded = SqliteStore(tmp_path / "s.sqlite").load(0.0)
    assert loaded.claims == house.enrollment.claims
    assert loaded.certificates == house.enrollment.certificates


@pytest.mark.parametrize(
    "name", ["aggregator", "operator", "monitor", "enrollment", "gateway-farm", "op-1", "Fan", "a/b"]
)
def test_names_that_are_not_a_devices(house, name) -> None:
    """The broker takes the name in a certificate for who it is: none may be the gateway's."""
    assert house.ask("device-ticket", device=name, claim=CLAIM, hours=1)[0].status == "failed"
    assert house.ask("device-allow", device=name, public_key="0" * 64)[0].status == "failed"


def test_a_flood_of_strangers_is_answered_a_bounded_number_of_times(house) -> None:
    """What nobody may ask for costs no write after the first few dozen; whoever has a ticket gets in all the same."""
    told = 0
    for _ in range(200):
        told += bool(house.gateway.handle(Claimed("none", request(make_key(), claim="none"), house.now_ms)))
    assert told == REFUSALS
    assert house.ticket().claimed(request(make_key()))[0].status == "issued"


def test_tickets_that_nobody_used_are_forgotten(house) -> None:
    """A month after they expired; those that wait for approval are not."""
    house.ticket(claim="c1", hours=1).ticket(device="fan-2", claim="c2", hours=1)
    house.now_ms += 32 * 24 * HOUR_MS
    house.ticket(device="fan-3", claim="c3")
    assert set(house.enrollment.claims) == {"c3"}
