"""`anabranch doctor`: where the broker is, what is printed."""

import datetime as dt
import json
import os
import re
import ssl
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import typer
from cryptography.x509.oid import NameOID
from rich.console import Console
from rich.table import Table

from anabranch.doctor.examination import Orders, examine
from anabranch.doctor.findings import Finding, Verdict
from anabranch.doctor.probe import Where
from fl_protocol.broker import BrokerConfig
from fl_protocol.certificates import read_certificate
from fl_protocol.errors import ConfigError

PASSWORD = "ANABRANCH_BROKER__PASSWORD"  # noqa: S105 - a variable's name
PORTS = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883}
_TOPIC = re.compile(r"[^+#$\0/][^+#\0]{0,200}")
COLOURS: dict[Verdict, str] = {"works": "green", "warning": "yellow", "fails": "red", "unknown": "dim"}


def read_url(url: str, ca: Path | None, certificate: Path | None, key: Path | None) -> Where:
    """`mqtt[s]://[user@]host[:port]`. Raises `ConfigError`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"--broker {url!r:.120} names no port", "for example mqtts://gw.local:8883") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise ConfigError(f"--broker {url!r:.120} is no broker's address", "mqtt://HOST[:PORT], or mqtts://HOST[:PORT]")
    if bool(certificate) != bool(key):
        raise ConfigError("--cert and --key belong together", "give both, or neither")
    secure = parts.scheme in ("mqtts", "ssl")
    if (ca or certificate) and not secure:
        raise ConfigError(f"--ca and --cert with {parts.scheme}://", "mqtts:// is the one with TLS")
    context: ssl.SSLContext | None = None
    if secure:
        config = BrokerConfig(host=parts.hostname, ca=ca, certificate=certificate, key=key)
        context = config.tls() if ca else _system_tls(certificate, key)
    password = unquote(parts.password) if parts.password else os.environ.get(PASSWORD)
    user = unquote(parts.username) if parts.username else None
    return Where(parts.hostname, port or PORTS[parts.scheme], context, user, password if user else None)


def _system_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use --cert and --key: {error}", "both are PEM files") from None
    return context


def _user(where: Where, certificate: Path | None) -> str:
    if certificate:
        names = read_certificate(certificate.read_bytes(), certificate.name).subject.get_attributes_for_oid(
            NameOID.COMMON_NAME
        )
        if names:
            return str(names[0].value)
    return where.username or "anyone"


def doctor_command(
    url: str,
    *,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    topic: str | None,
    queue: int,
    version: Literal["5", "3.1.1"] | None,
    as_json: bool,
) -> int:
    """0 where nothing fails, else 1. Raises `ConfigError`."""
    where = read_url(url, ca, certificate, key)
    root = topic or f"anabranch-doctor/{_user(where, certificate)}"
    if not _TOPIC.fullmatch(root):
        raise ConfigError(f"--topic {root!r:.120} is no topic", "levels between slashes, without +, # and $")
    orders = Orders(where, root, queue, version=version)
    found: list[Finding] = []
    with Console(stderr=True).status("connecting") as status:
        found += examine(orders, dt.datetime.now(dt.UTC), lambda what: status.update(f"trying: {what}"))
    if as_json:
        typer.echo(
            json.dumps({"broker": f"{where.host}:{where.port}", "findings": [asdict(f) for f in found]}, indent=2)
        )
    else:
        _print(found)
    return 1 if any(finding.verdict == "fails" for finding in found) else 0


def _print(found: list[Finding]) -> None:
    table = Table("", "", "what, what it means, and what to do", show_lines=True)
    for finding in found:
        rest = [finding.meaning and f"[dim]{finding.meaning}[/]", finding.mend and f"[bold]{finding.mend}[/]"]
        words = "\n".join(text for text in (finding.what, *rest) if text)
        table.add_row(finding.check, f"[{COLOURS[finding.verdict]}]{finding.verdict}[/]", words)
    console = Console()
    console.print(table)
    counts = Counter(finding.verdict for finding in found)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS if counts[verdict]))
