"""A whole gateway that lets devices in: authority, mosquitto with three TLS listeners, aggregator; as processes."""

import datetime as dt
import os
import signal
import subprocess
import sys
from pathlib import Path

from broker_aggregator.pki import make_pki
from tests.support.mosquitto import accepts, free_port
from tests.support.waiting import wait_until

FLEET = "farm"
TLS = """\
cafile {pki}/ca.pem
certfile {pki}/server.pem
keyfile {pki}/server.key
"""
MUTUAL = TLS + "crlfile {pki}/crl.pem\nrequire_certificate true\nuse_identity_as_username true\n"


class Gatehouse:
    """`settings` are lines of `[enrollment]`."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder, self.pki = folder, folder / "pki"
        make_pki(self.pki, FLEET, ["localhost", "127.0.0.1"], dt.datetime.now(dt.UTC))
        self.port, self.enroll_port, self.service_port = free_port(), free_port(), free_port()
        self.config = folder / "gateway.toml"
        self.config.write_text(f"""
[gateway]
fleet = "{FLEET}"
data_dir = "data"
[broker]
host = "127.0.0.1"
port = {self.service_port}
ca = "pki/ca.pem"
certificate = "pki/services/aggregator.pem"
key = "pki/services/aggregator.key"
reconnect_max_s = 1
[enrollment]
pki = "pki"
host = "127.0.0.1"
port = {self.port}
enroll_port = {self.enroll_port}
{settings}
""")
        (folder / "devices.acl").write_text(
            f"pattern readwrite fl/1/{FLEET}/dev/%u/#\n"  # `topic` without `user` would be for anonymous clients alone
            f"pattern read fl/1/{FLEET}/task/#\npattern read fl/1/{FLEET}/gw/#\n"
        )
        (folder / "claims.acl").write_text(
            f"pattern write fl/1/{FLEET}/enroll/%u/req\npattern read fl/1/{FLEET}/enroll/%u/resp\n"
        )
        (folder / "services.acl").write_text("user aggregator\ntopic readwrite #\n")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_broker()
        self.start_aggregator()

    def start_broker(self) -> None:
        """mosquitto, as the field has it but for its ports."""
        listeners = (
            (
                self.port,
                MUTUAL + "use_username_as_clientid true\nacl_file {folder}/devices.acl\nallow_anonymous false\n",
            ),
            (self.service_port, MUTUAL + "acl_file {folder}/services.acl\nallow_anonymous false\n"),
            (self.enroll_port, TLS + "acl_file {folder}/claims.acl\nallow_anonymous true\n"),
        )
        lines = ["per_listener_settings true", "log_type all", "user root" if os.geteuid() == 0 else ""]
        for port, text in listeners:
            lines += [f"listener {port} 127.0.0.1", text.format(pki=self.pki, folder=self.folder)]
        file = self.folder / "mosquitto.conf"
        file.write_text("\n".join(lines))
        self.start("broker", ["mosquitto", "-c", str(file)])
        wait_until(lambda: accepts(self.service_port), what="mosquitto listens")

    def start_aggregator(self) -> None:
        """The real program."""
        self.start("aggregator", [sys.executable, "-m", "broker_aggregator", "run", "--config", str(self.config)])
        wait_until(lambda: "connected (MQTT" in self.log("aggregator"), what="the aggregator is connected")

    def reload_broker(self) -> None:
        """What systemd's path unit does once crl.pem has changed."""
        self.processes["broker"].send_signal(signal.SIGHUP)

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """A program, its words in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
        return self.processes[name]

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    def log(self, name: str) -> str:
        """All that a program said so far."""
        return (self.folder / f"{name}.log").read_text()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`broker-aggregator WORDS --config ...`."""
        command = [sys.executable, "-m", "broker_aggregator", *words, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def ticket(self, device: str, *words: str) -> Path:
        """A new ticket's file."""
        done = self.command("device", "ticket", device, "--output", str(self.folder / "tickets"), *words)
        assert done.returncode == 0, done.stderr
        return self.folder / "tickets" / f"{device}.toml"

    def device(self, name: str, ticket: Path) -> Path:
        """A freshly flashed device's folder, with its configuration."""
        card = self.folder / name
        (card / "data").mkdir(parents=True)
        (card / "ticket.toml").write_bytes(ticket.read_bytes())
        (card / "agent.toml").write_text("""
[enroll]
ticket = "ticket.toml"
directory = "identity"
[device]
state_dir = "state"
[data]
path = "data"
[health]
state_s = 0.0
""")
        return card

    def boot(self, card: Path, *words: str) -> subprocess.Popen[bytes]:
        """`edge-agent run` on that card."""
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(card / "agent.toml"), *words]
        return self.start(card.name, command)

    def close(self) -> None:
        """End everything."""
        for name in list(self.processes):
            self.kill(name)
