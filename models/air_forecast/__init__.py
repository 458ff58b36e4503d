"""Smart city: how much fine dust will there be at this station in six hours?"""

import torch
from torch import Tensor

from anabranch.datasets import load
from anabranch.datasets.beijing_air import COLUMNS, HOURS, LICENCE
from models.air_forecast.model import AirForecast, Config
from models.losses import huber
from models.metrics import ABSOLUTE_ERROR
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    data = load("beijing_air")
    return Splits(data.train, data.validation, data.test)


def _loss(output: Tensor, y: Tensor) -> Tensor:
    """Huber's in deviations of the training targets, 80 ug/m3: an error counts linearly above 8 ug/m3."""
    return huber(output / 80, y / 80, delta=0.1)


SPEC = ModelSpec(
    name="air_forecast",
    description="PM2.5 in ug/m3 six hours ahead, from 24 hours of pollutants and weather at a station",
    licence=LICENCE,
    module=lambda: AirForecast(Config()),
    x=Input((HOURS, len(COLUMNS)), torch.float32),
    y=Input((1,), torch.float32),
    labels=(),
    examples=_examples,
    optimizer=Sgd(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    loss=_loss,
    metric=ABSOLUTE_ERROR,
    batch_size=64,
)
