"""Labs for the contracts of transport and broker: in memory, and over mosquitto with MQTT 5 and 3.1.1."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labs import LABS, Lab, LabWith


@pytest.fixture(params=LABS)
def lab_with(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LabWith]:
    """Makes a lab, with limits of the broker: max_packet, max_queued, max_in_flight, saves."""
    labs: list[Lab] = []
    make = LABS[request.param](tmp_path)

    def start(**limits: object) -> Lab:
        labs.append(make(**limits))
        return labs[-1]

    yield start
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(lab_with: LabWith) -> Lab:
    return lab_with()
