"""A model of none of the catalog's kinds: self-attention, and several labels at once, with its own loss and metric."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fl_protocol.bundle import Bundle
from models.build import build
from models.gates import Bench, run_gates
from models.metrics import Metric
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits

HOURS, COLUMNS, WIDTH, ALARMS = 24, 12, 24, 6
UPDATES = 5


class AirAlarms(nn.Module):
    """Readings of a day, (B, 24, 12), oldest first -> logits of six alarms, (B, 6)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((COLUMNS,), 3.0))
        self.read = nn.Linear(COLUMNS, WIDTH)
        self.hour = nn.Parameter(torch.randn(HOURS, WIDTH) * 0.1)
        self.before = nn.LayerNorm(WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.between = nn.LayerNorm(WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        self.alarm = nn.Linear(2 * WIDTH, ALARMS)

    def forward(self, x):
        x = torch.cat((x[:, :, :ALARMS].clamp(min=0).log1p(), x[:, :, ALARMS:]), -1)
        h = self.read(x - self.mean) + self.hour
        query = self.before(h)
        h = h + self.attend(query, query, query, need_weights=False)[0]
        h = h + self.think(self.between(h))
        return self.alarm(torch.cat((h[:, -1], h.mean(1)), -1))


def all_alarms(output, y):
    return F.binary_cross_entropy_with_logits(output, y, reduction="none").mean(1)


def examples():
    """Pollutants that wander; an alarm is one that ends above its limit, which a third of all do."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.4, (1800, HOURS, COLUMNS)).cumsum(1) + 3
    x[:, :, :ALARMS] = np.expm1(np.abs(x[:, :, :ALARMS]))
    y = (x[:, -6:, :ALARMS].mean(1) > np.quantile(x[:, -6:, :ALARMS].mean(1), 0.67, 0)).astype(np.float32)
    return Splits(*((x[part].astype(np.float32), y[part]) for part in map(slice, (0, 1200, 1500), (1200, 1500, 1800))))


SPEC = ModelSpec(
    name="air_alarms",
    description="Which of six pollutants will pass its limit, from a day of a station's readings, (24, 12)",
    licence="no data: it is made up",
    module=AirAlarms,
    x=Input((HOURS, COLUMNS), torch.float32),
    labels=(),
    y=Input((ALARMS,), torch.float32),
    loss=all_alarms,
    metric=Metric("alarms_right", lambda output, y: ((output > 0) == (y > 0.5)).float().mean(1)),
    examples=examples,
    optimizer=Sgd(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
)


@pytest.mark.slow
def test_it_passes_every_gate_and_learns():
    bundle = Bundle.read(build(SPEC))
    assert [gate for gate in run_gates(bundle, SPEC) if not gate.passed] == []
    bench = Bench(bundle, SPEC)
    x, y = bench.held_out
    untrained = bench.score(bench.output_torch(bench.step, bench.initial, x), y)
    entries = bench.initial
    for _ in range(UPDATES):
        entries = bench.run(entries, steps=40)
    assert bench.score(bench.output_torch(bench.step, entries, x), y) > max(untrained, 0.67) + 0.1
