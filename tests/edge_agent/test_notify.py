"""What systemd hears, on a real datagram socket; and that its absence costs nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def nothing_more(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        return not manager.recv(4096)
    except BlockingIOError:
        return True


def test_the_manager_hears_ready_status_and_the_end(manager: socket.socket) -> None:
    """A status is one line, whatever a broker's reason was."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready()
    notifier.status("lost the broker\nREADY=1 (reset " + "x" * 500)
    notifier.stopping()
    assert heard(manager) == "READY=1"
    status = heard(manager)
    assert status.startswith("STATUS=lost the broker READY=1 (reset x")
    assert "\n" not in status
    assert len(status) <= 220
    assert heard(manager) == "STOPPING=1"


def test_the_watchdog_is_fed_four_times_in_its_time(manager: socket.socket) -> None:
    """However often the loop turns."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "8000000"})
    told = []
    for tenth in range(80):
        notifier.alive(tenth / 10)
        manager.setblocking(False)
        try:
            told.append((tenth, manager.recv(4096)))
        except BlockingIOError:
            continue
    assert told == [(tenth, b"WATCHDOG=1") for tenth in (0, 20, 40, 60)]


def test_an_abstract_socket_is_one_too() -> None:
    """Older managers use them: the name begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0anabranch-test-notify")
        listening.settimeout(10)
        Notifier({"NOTIFY_SOCKET": "@anabranch-test-notify"}).ready()
        assert heard(listening) == "READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "many"}])
def test_without_a_manager_nothing_is_said_and_nothing_raised(environ: dict[str, str]) -> None:
    """By hand, in a container, in the simulator."""
    notifier = Notifier(environ)
    notifier.ready()
    notifier.status("at work")
    notifier.alive(1.0)
    notifier.stopping()


def test_without_a_watchdog_the_loop_is_silent(manager: socket.socket) -> None:
    """`WatchdogSec=0` in a drop-in."""
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}).alive(1.0)
    assert nothing_more(manager)


def test_a_full_socket_does_not_stop_the_loop(manager: socket.socket) -> None:
    """A manager that hangs."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for number in range(5000):
        notifier.status(str(number))
