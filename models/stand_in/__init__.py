"""A stand-in for a model in fast simulations of thousands of devices: small, real, and of no use.

The simulator never runs its graphs, it makes updates of its shape; but the production code in it fetches, verifies and
swaps the bundle as it would any other. Its examples are drawn, not measured.
"""

import numpy as np
import torch

from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits
from models.stand_in.model import Config, StandIn

_EXAMPLES = 600  # to train with, and as many in each of the other splits
_SPREAD = 2.0  # around centres that are about 9 apart: a few examples in a hundred are on the wrong side


def _examples() -> Splits:
    config, rng = Config(), np.random.default_rng(0)
    centres = rng.standard_normal((config.classes, config.inputs))
    y = rng.integers(0, config.classes, 3 * _EXAMPLES)
    x = (centres[y] + _SPREAD * rng.standard_normal((len(y), config.inputs))).astype(np.float32)
    thirds = (slice(start, start + _EXAMPLES) for start in range(0, len(y), _EXAMPLES))
    return Splits(*((x[third], y[third]) for third in thirds))


SPEC = ModelSpec(
    name="stand_in",
    description="A stand-in for simulations: three made-up classes of forty made-up numbers",
    licence="Apache-2.0 (no data)",
    module=lambda: StandIn(Config()),
    x=Input((Config.inputs,), torch.float32),
    labels=("first", "second", "third"),
    examples=_examples,
    optimizer=Sgd(learning_rate=0.05, momentum=0.9, weight_decay=1e-3),
)
