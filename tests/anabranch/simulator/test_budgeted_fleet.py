"""A fleet on a byte budget, in the twin: it learns with coarser updates, and no socket carries more than it may."""

import pytest

from anabranch.simulator.experiment import (
    AgentSection,
    ChecksSection,
    DataSection,
    Experiment,
    FleetSection,
    StopSection,
    TrainingSection,
)
from anabranch.simulator.twin import Twin
from edge_agent.budget import MB, RESERVE

HOURS = 6.0
DAILY_MB = 0.2  # the bundle takes 0.06 of it


def run(daily_mb: float) -> Twin:
    """Three fans from midnight on, a training every ten minutes."""
    experiment = Experiment(
        name="budget",
        bundle="fan_vibration",
        plan={"buffer": 2, "deadline_s": 600, "local_epochs": 1, "downlink": {"name": "uq", "step": "1.5"}},
        data=DataSection(source="fan_vibration"),
        fleet=FleetSection(devices=3),
        training=TrainingSection(real=True, overhead_ms=600_000.0, threads=1),
        agent=AgentSection(daily_mb=daily_mb, health_s=3600.0, measure_s=60.0),
        stop=StopSection(hours=HOURS),
        checks=ChecksSection(thorough=False),
    )
    twin = Twin(experiment, 3)
    twin.run()
    twin.recorder.close()
    assert not twin.checker.violations
    return twin


@pytest.fixture(scope="module")
def free() -> Twin:
    """The same fleet without a limit."""
    return run(0.0)


@pytest.fixture(scope="module")
def tight() -> Twin:
    """With one."""
    return run(DAILY_MB)


def wire_bytes(twin: Twin) -> list[int]:
    """What each device's socket carried, both ways."""
    return [device.bytes_sent + device.bytes_received for device in twin.devices]


def update_bytes(twin: Twin) -> float:
    """The mean of all but each device's first, which knows no turn yet."""
    sizes = [row.num_bytes for row in twin.store.rows() if row.seq > 1]
    return sum(sizes) / len(sizes)


def test_no_device_spends_more_than_its_budget_and_the_reserve(free: Twin, tight: Twin) -> None:
    """Each is used up before the night is over, and rests; without the limit each would have spent more."""
    assert max(wire_bytes(tight)) <= DAILY_MB * MB * (1 + RESERVE)
    assert min(wire_bytes(free)) > DAILY_MB * MB * (1 + RESERVE)
    assert all(a.train_s < b.train_s for a, b in zip(tight.devices, free.devices, strict=True))


def test_it_learns_coarser(free: Twin, tight: Twin) -> None:
    """Updates of half the bytes; from chance to most of what the fleet without a limit learns."""
    assert update_bytes(tight) < 0.6 * update_bytes(free)
    first, last = tight.recorder.rows[0].value, tight.recorder.value
    assert first is not None
    assert last is not None
    assert free.recorder.value is not None
    assert last - first > 0.15
    assert last > 0.8 * free.recorder.value
