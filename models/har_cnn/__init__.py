"""Human activity recognition: what is a person doing, from 2.56 s of the phone at the waist?"""

import torch

from anabranch.datasets.har import CHANNELS, CLASSES, LICENCE, WINDOW, load_test, load_training, load_validation
from models.har_cnn.model import Config, HarCnn
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    return Splits(load_training(), load_validation(), load_test())


SPEC = ModelSpec(
    name="har_cnn",
    description="Six activities of a person, from 2.56 s of a phone's accelerometer and gyroscope at 50 Hz",
    licence=LICENCE,
    module=lambda: HarCnn(Config()),
    x=Input((WINDOW, len(CHANNELS)), torch.float32),
    labels=CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.03, momentum=0.9, weight_decay=1e-3),
    batch_size=32,
)
