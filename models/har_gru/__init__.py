"""Human activity recognition as `har_cnn` has it, by a recurrent network."""

import torch

from anabranch.datasets.har import CHANNELS, CLASSES, LICENCE, WINDOW, load_test, load_training, load_validation
from models.har_gru.model import Config, HarGru
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    return Splits(load_training(), load_validation(), load_test())


SPEC = ModelSpec(
    name="har_gru",
    description="Six activities of a person, from 2.56 s of a phone's accelerometer and gyroscope, by a GRU",
    licence=LICENCE,
    module=lambda: HarGru(Config()),
    x=Input((WINDOW, len(CHANNELS)), torch.float32),
    labels=CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.05, momentum=0.9, weight_decay=1e-3),
    batch_size=32,
)
