"""A gateway as `up` makes it, in a folder: both brokers and the aggregator run, and clients with real certificates."""

import datetime as dt
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from anabranch.doctor.probe import Probe, Where
from broker_aggregator.authority import Authority
from broker_aggregator.pki import Pki
from fl_protocol.certificates import key_pem, make_key
from fl_protocol.durable import write_durably
from tests.support.mosquitto import accepts, free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
FLEET = "plant"
NAME = "gw.local"


def deploy(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """`python -m deploy`, as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "deploy", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Gateway:
    """`gateway up --root FOLDER` on free ports; `start` runs what it wrote."""

    def __init__(self, folder: Path, *options: object, name: str = NAME) -> None:
        self.root = folder
        self.port, self.enroll_port, self.services_port = free_port(), free_port(), free_port()
        self.options = [
            *("--fleet", FLEET, "--name", name, "--root", folder, "--port", self.port),
            *("--enroll-port", self.enroll_port, "--services-port", self.services_port, "--autosave", 1, *options),
        ]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.issued: dict[str, Authority] = {}

    def up(self, *more: object) -> dict[str, object]:
        done = deploy("gateway", "up", *self.options, *more, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    @property
    def etc(self) -> Path:
        return self.root / "etc/anabranch-gateway"

    @property
    def pki(self) -> Path:
        return self.root / "var/lib/anabranch-gateway/pki"

    @property
    def authority(self) -> Authority:
        return Pki(self.pki).authority

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def start(self, name: str) -> None:
        """`broker`, `enrollment` or `aggregator`; returns when it answers."""
        command = ["/bin/sh", str(self.etc / "broker.sh"), str(self.etc / "mosquitto" / f"{name}.conf")]
        if name == "aggregator":
            command = [sys.executable, "-m", "broker_aggregator", "run", "-c", str(self.etc / "gateway.toml")]
        self.run(name, command)
        ports = {"broker": (self.port, self.services_port), "enrollment": (self.enroll_port,), "aggregator": ()}[name]
        wait_until(lambda: all(accepts(port) for port in ports), 20, f"{name} listens: {self.log(name)}")
        if name == "aggregator":
            wait_until(lambda: "connected (MQTT" in self.log(name), 30, "the aggregator connects")
        if name == "enrollment":
            wait_until(lambda: "enrollment.bridge" in self.log("broker"), 40, "the bridge connects")

    def run(self, name: str, command: list[str]) -> None:
        """A program, its words in NAME.log."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def aggregator(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`broker-aggregator WORDS --config ...`."""
        command = [
            sys.executable,
            "-m",
            "broker_aggregator",
            *map(str, words),
            "--config",
            str(self.etc / "gateway.toml"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """The program itself; the script that runs a broker ends with it."""
        process = self.processes.pop(name)
        os.kill(mosquitto_below(process.pid) if name in ("broker", "enrollment") else process.pid, number)
        process.wait(20)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def reload(self) -> None:
        """What `anabranch-certificates.path` has systemd do."""
        self.processes["broker"].send_signal(signal.SIGHUP)

    def issue(
        self, name: str, authority: Authority | None = None, now: dt.datetime | None = None, days: int = 30
    ) -> int:
        """A certificate for a device; its serial number."""
        key = make_key()
        certificate = (authority or self.authority).certify_client(
            name, key.public_key(), now or dt.datetime.now(dt.UTC), days
        )
        (self.root / f"{name}.key").write_bytes(key_pem(key))
        (self.root / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate.serial_number

    def revoke(self, *serials: int, number: int = 2) -> None:
        now = dt.datetime.now(dt.UTC)
        crl = self.authority.revocation_list([(serial, now) for serial in serials], number, now)
        write_durably(self.pki / "crl.pem", crl)

    def tls(self, certificate: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.pem"))
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def device(self, name: str, **options) -> Probe:
        """A device's connection, with a certificate of its own."""
        if not (self.root / f"{name}.pem").exists():
            self.issue(name)
        where = Where("localhost", self.port, self.tls(self.root / f"{name}.pem"))
        return Probe(where, options.pop("client_id", f"{FLEET}.{name}"), **options)

    def service(self, name: str, **options) -> Probe:
        """`aggregator`, `operator` or `monitor`."""
        where = Where("localhost", self.services_port, self.tls(self.pki / f"services/{name}.pem"))
        return Probe(where, options.pop("client_id", f"test-{name}"), **options)

    def claim(self, name: str | None, **options) -> Probe:
        """Someone with a ticket, or without one."""
        where = Where("localhost", self.enroll_port, self.tls(), username=name)
        return Probe(where, options.pop("client_id", f"claim-{name}"), **options)


def mosquitto_below(pid: int) -> int:
    """The broker that a script has started, at whatever depth."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        below = [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        found += [child for child in below if Path(f"/proc/{child}/comm").read_text().strip() == "mosquitto"]
        todo += below
    (broker,) = found
    return broker


@contextmanager
def running(folder: Path, *names: str, name: str = NAME) -> Iterator[Gateway]:
    """A gateway of which these run; it is stopped at the end."""
    gateway = Gateway(folder, name=name)
    gateway.up()
    try:
        for program in names:
            gateway.start(program)
        yield gateway
    finally:
        gateway.stop()


def topic(text: str) -> str:
    """Below the fleet's root."""
    return f"fl/1/{FLEET}/{text}"
