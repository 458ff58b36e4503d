"""A real mosquitto on a free port of this machine, to be killed, wiped and started again."""

import os
import random
import signal
import socket
import subprocess
from pathlib import Path

from tests.support.waiting import wait_until

# Below the range that the kernel gives to outgoing connections: nobody takes the port between a kill and a restart.
PORTS = range(12_000, 32_000)


def accepts(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nothing listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Mosquitto:
    """A broker; with `persistence` it writes its disk, else it forgets everything when it ends.

    It writes at every change with `autosave`, else when `save` tells it to and when it is stopped in good order.
    `settings` are lines of mosquitto.conf. Where they say `allow_anonymous`, the default (true) is left out.
    """

    def __init__(self, directory: Path, settings: str = "", *, persistence: bool = True, autosave: bool = True) -> None:
        self.directory, self.settings = directory, settings
        self.persistence, self.autosave = persistence, autosave
        self.database = directory / "mosquitto.db"
        self.log = directory / "mosquitto.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(5):  # somebody may take the port between our look and mosquitto's
            self.port = free_port()
            try:
                self.restart()
            except BrokerEndedError:
                continue
            return
        raise AssertionError(f"mosquitto does not start: {self.log.read_text()}")

    def configuration(self) -> str:
        """The mosquitto.conf."""
        lines = [f"listener {self.port} 127.0.0.1", "log_type all", self.settings]
        if "allow_anonymous" not in self.settings:
            lines.append("allow_anonymous true")
        if os.geteuid() == 0:
            lines.append("user root")
        if self.persistence:
            lines += ["persistence true", f"persistence_location {self.directory}/"]
            lines += ["autosave_on_changes true", "autosave_interval 1"] if self.autosave else ["autosave_interval 0"]
        return "\n".join(lines) + "\n"

    def restart(self) -> None:
        """Start the broker, on the same port; returns when it accepts connections."""
        assert self.process is None, "it runs"
        file = self.directory / "mosquitto.conf"
        file.write_text(self.configuration())
        with self.log.open("ab") as log:
            process = subprocess.Popen(["mosquitto", "-c", str(file)], stdout=log, stderr=log)
        self.process = process

        def up() -> bool:
            if process.poll() is not None:
                self.process = None
                raise BrokerEndedError
            return accepts(self.port)

        wait_until(up, what="mosquitto accepts connections")

    def kill(self) -> None:
        """`kill -9`: no farewell to anyone, no last write."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def save(self) -> None:
        """Make it write its disk now; returns when it has."""
        assert self.process is not None, "it does not run"
        before = self._written()
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: self._written() != before, what="mosquitto writes its disk")

    def has_lost(self, client_id: str) -> bool:
        """Whether it knows by now that the last connection of a client id has ended."""
        log = self.log.read_text()
        return log.rfind(f"Client {client_id} ") > log.rfind(f" as {client_id} (")

    def wipe(self) -> None:
        """Lose the disk of a broker that does not run."""
        assert self.process is None, "kill it first"
        self.database.unlink(missing_ok=True)

    def holds(self, content: bytes) -> bool:
        """Whether the disk holds these bytes, as part of a session or a retained message."""
        return self.database.exists() and content in self.database.read_bytes()

    def _written(self) -> tuple[int, int] | None:
        """Which file the disk is: each write makes a new one, and renames it when it is whole."""
        if not self.database.exists():
            return None
        file = self.database.stat()
        return file.st_ino, file.st_mtime_ns

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None


class BrokerEndedError(Exception):
    """mosquitto ended before it accepted a connection."""
