"""A device's next certificate, asked for over its own topics in good time."""

import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_agent.enrolling import ASK_S, AUTHORITY, DEVICE, REQUEST, request_key
from edge_agent.leaving import check_leaving
from edge_agent.logs import LEAVES
from fl_protocol.certificates import check_issued, key_pem, make_request, read_certificate, renew_at
from fl_protocol.codec import encode
from fl_protocol.durable import write_durably
from fl_protocol.enrolling import sign_renewal
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import Certified
from fl_protocol.signing import SigningKey, unseal
from fl_protocol.topics import Kind, build
from fl_protocol.transport import Connected, Delivery, Disconnected, Incoming, Transport

log = logging.getLogger("edge_agent")
DAY_S = 86400.0


class Renewal:
    """Asks for the next certificate when two thirds of this one's life are over, and takes it into use.

    The open connection stays; the next one shows the new certificate. Without a clock nothing is asked.
    """

    def __init__(
        self,
        folder: Path,
        context: ssl.SSLContext,
        signing: SigningKey,
        fleet: str,
        device: str,
        fleet_key: Callable[[], str],
    ) -> None:
        self._folder, self._context, self._signing = folder, context, signing
        self._fleet, self._device, self._fleet_key = fleet, device, fleet_key
        self._to = build(Kind.RENEW, fleet, device=device)
        self._from = build(Kind.CERTIFICATE, fleet, device=device)
        self._due_ms = self._read()
        self._connected, self._asked = False, float("-inf")
        self._patience_s = ASK_S

    def _read(self) -> int:
        issued = read_certificate((self._folder / DEVICE).read_bytes(), DEVICE)
        return round(renew_at(issued).timestamp() * 1000)

    def takes(self, incoming: Incoming, transport: Transport) -> bool:
        """Whether this is for the renewal alone."""
        match incoming:
            case Connected():
                self._connected = True
                transport.subscribe([(self._from, 1)])
            case Disconnected():
                self._connected = False
            case Delivery(topic, payload) if topic == self._from:
                self._answered(payload)
                return True
        return False

    def tick(self, now: float, wall_ms: int, transport: Transport) -> None:
        """Ask where it is time to; `now` is monotonic, `wall_ms` since 1970 or 0."""
        if self._connected and wall_ms >= self._due_ms and now >= self._asked + self._patience_s:
            self._asked, self._patience_s = now, min(DAY_S, self._patience_s * 4)
            csr = make_request(request_key(self._folder), self._device)
            renew = sign_renewal(csr, self._signing, self._fleet, self._device)
            check_leaving(self._to, renew)
            transport.publish(self._to, encode(renew))

    def _answered(self, payload: bytes) -> None:
        try:
            answer = unseal(Certified, payload, self._fleet_key(), self._fleet, self._from)
            if answer.status != "issued":
                log.error("no new certificate: %s %s", answer.code, answer.why, extra=LEAVES)
                return
            key = request_key(self._folder)
            authority = (self._folder / AUTHORITY).read_bytes()
            issued = check_issued(answer.certificate, authority, key.public_key(), self._device)
        except (ProtocolError, OSError) as error:
            log.warning("not the certificate that was asked for: %s", error)
            return
        write_durably(self._folder / DEVICE, key_pem(key) + answer.certificate.encode(), mode=0o600)
        with suppress(FileNotFoundError):
            (self._folder / REQUEST).unlink()
        self._context.load_cert_chain(self._folder / DEVICE)
        self._due_ms, self._patience_s = self._read(), ASK_S
        log.info("a new certificate, good until %s", f"{issued.not_valid_after_utc:%Y-%m-%d}", extra=LEAVES)
