"""Predictive maintenance: how unbalanced is a cooler fan, from four seconds of its accelerometer?"""

import torch

from anabranch.datasets.fan_vibration import CLASSES, LICENCE, load_all
from models.fan_vibration.model import Config, FanVibration
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    return Splits(*load_all())


SPEC = ModelSpec(
    name="fan_vibration",
    description="Imbalance of a cooler fan, in three grades, from four seconds of a three-axis accelerometer at 50 Hz",
    licence=LICENCE,
    module=lambda: FanVibration(Config()),
    x=Input((Config.window, 3), torch.float32),
    labels=CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.03, momentum=0.9, weight_decay=1e-3),
    batch_size=32,
)
