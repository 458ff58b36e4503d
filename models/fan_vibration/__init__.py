"""Predictive maintenance: how unbalanced is a cooler fan, from four seconds of its accelerometer?"""

import torch

from anabranch.fan_vibration import CLASSES, LICENCE, load_all
from models.fan_vibration.model import Config, FanVibration
from models.spec import Examples, Input, ModelSpec


def _examples() -> tuple[Examples, Examples]:
    fans = load_all()
    return fans.train, fans.test


SPEC = ModelSpec(
    name="fan_vibration",
    description="Imbalance of a cooler fan, in three grades, from four seconds of a three-axis accelerometer at 50 Hz",
    licence=LICENCE,
    module=lambda: FanVibration(Config()),
    x=Input((Config.window, 3), torch.float32),
    labels=CLASSES,
    examples=_examples,
    hyper={"learning_rate": 0.03, "momentum": 0.9, "weight_decay": 1e-3},
    batch_size=32,
)
