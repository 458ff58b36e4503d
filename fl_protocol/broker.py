"""How either side reaches its broker: the `[broker]` section. `connecting.py` makes a transport of it."""

import datetime as dt
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from msgspec import Meta

from fl_protocol.errors import ConfigError

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL


def _has_no_clock(authority: bytes) -> bool:
    """Whether this machine believes that it lives before its broker's authority was made.

    A Pi has no clock until the network gives it one: with dates checked it would fail for ever. Who signed is checked
    all the same. Raises `ValueError` for what is no certificate.
    """
    from cryptography import x509  # megabytes, and for TLS alone

    return dt.datetime.now(dt.UTC) < x509.load_pem_x509_certificate(authority).not_valid_before_utc


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """Where the broker is; with `ca` the connection is TLS, with `certificate` and `key` mutual."""

    host: Annotated[str, Meta(min_length=1)] = "localhost"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # 0: 8883 with TLS, 1883 without
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    mqtt_version: Literal["auto", "5", "3.1.1"] = "auto"
    max_packet: Annotated[int, Meta(ge=1024, le=8 << 20)] | None = None  # bytes; where the broker does not say
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    reconnect_max_s: Annotated[float, Meta(gt=0)] = 300.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (8883 if self.ca else 1883)

    def relative_to(self, base: Path) -> Self:
        """The same, with the paths of TLS files starting at `base`."""
        files = {name: base / value for name in ("ca", "certificate", "key") if (value := getattr(self, name))}
        return replace(self, **files)

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings, None without. Raises `ConfigError` for files that are not what they should be."""
        if self.ca is None:
            if self.certificate or self.key:
                raise ConfigError("`certificate` and `key` in [broker] need `ca`", "name the broker's CA file")
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if _has_no_clock(self.ca.read_bytes()):
                context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot use the TLS files of [broker]: {error}", "`ca`, `certificate` and `key` are PEM files"
            ) from None
        return context
