"""Anomaly detection: does a cooler fan shake otherwise than fans in balance do? Nobody labels anything."""

import torch

from anabranch.datasets import load
from anabranch.datasets.fan_vibration import LICENCE, WINDOW
from models.anomaly_autoencoder.model import AnomalyAutoencoder, Config
from models.losses import reconstruction
from models.metrics import RECONSTRUCTION_ERROR
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    """Fans in balance, to train and to validate; the test set has all classes, for an AUC."""
    data = load("fan_anomaly")
    return Splits(data.train, data.validation, data.test)


SPEC = ModelSpec(
    name="anomaly_autoencoder",
    description="How unlike a balanced fan's this vibration is: the error of an autoencoder of its spectrum",
    licence=LICENCE,
    module=lambda: AnomalyAutoencoder(Config()),
    x=Input((WINDOW, 3), torch.float32),
    labels=(),
    examples=_examples,
    optimizer=Sgd(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    loss=reconstruction,
    metric=RECONSTRUCTION_ERROR,
    batch_size=32,
)
