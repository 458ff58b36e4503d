"""Fixtures for everyone: a real broker, as often as a test wants one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support.peer", "tests.support.waiting")

from fl_protocol.telemetry import forbid_telemetry  # noqa: E402 - asserts are rewritten at import
from tests.support.mosquitto import Mosquitto  # noqa: E402

forbid_telemetry()  # tests import onnxruntime themselves

settings.register_profile("anabranch", deadline=None)  # a busy machine is no bug
settings.load_profile("anabranch")


@pytest.fixture
def mosquitto_with(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers: `mosquitto_with("max_packet_size 20000", persistence=False)`. All end with the test."""
    brokers: list[Mosquitto] = []

    def start(settings: str = "", *, persistence: bool = True) -> Mosquitto:
        broker = Mosquitto(tmp_path / f"mosquitto-{len(brokers)}", settings, persistence=persistence)
        brokers.append(broker)
        return broker

    yield start
    for broker in brokers:
        broker.kill()


@pytest.fixture
def mosquitto(mosquitto_with: Callable[..., Mosquitto]) -> Mosquitto:
    """A running broker with persistence: `.port`, `.kill()`, `.restart()`, `.wipe()`."""
    return mosquitto_with()
