"""Predictive maintenance: will this cut make the milling machine fail?"""

from functools import partial

import torch

from anabranch.datasets import load
from anabranch.datasets.ai4i import CLASSES, COLUMNS, LICENCE
from models.losses import binary_cross_entropy
from models.machine_failure.model import Config, MachineFailure
from models.metrics import balanced_accuracy
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits

SHARES = (0.966, 0.034)  # of cuts that work and that fail, in training


def _examples() -> Splits:
    data = load("ai4i")
    return Splits(data.train, data.validation, data.test)


SPEC = ModelSpec(
    name="machine_failure",
    description="Whether a milling machine fails, from temperatures, speed, torque and the wear of its tool",
    licence=LICENCE,
    module=lambda: MachineFailure(Config()),
    x=Input((len(COLUMNS),), torch.float32),
    labels=CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.03, momentum=0.9, weight_decay=1e-4),
    # Balance would be 28. Less finds as many failures on validation, and raises fewer false alarms.
    loss=partial(binary_cross_entropy, positive_weight=10.0),
    metric=balanced_accuracy(SHARES),
    batch_size=32,
)
