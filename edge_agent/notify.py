"""What the agent tells systemd: that it is ready, what it is at, and that its loop still turns.

The protocol of sd_notify(3), which is a datagram to the socket that `$NOTIFY_SOCKET` names. Without one nothing is
said, and a manager that is not there any more stops no training.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress

STATUS_MAX = 200


class Notifier:
    """Speaks to the service manager, if there is one; `alive` may be called as often as the loop turns."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._alive_s = _microseconds(environ.get("WATCHDOG_USEC", "")) / 4  # several may be lost or late
        self._alive_at = 0.0

    def ready(self) -> None:
        """The agent works: it may be without its broker."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())[:STATUS_MAX]}")

    def stopping(self) -> None:
        """The agent ends, as it was asked to."""
        self._send("STOPPING=1")

    def alive(self, now: float) -> None:
        """The loop turns; told four times in the time after which the watchdog bites, `now` is any steady clock."""
        if self._alive_s and now >= self._alive_at:
            self._alive_at = now + self._alive_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            out.sendto(message.encode(), self._address)


def _microseconds(text: str) -> float:
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
