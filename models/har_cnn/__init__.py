"""Human activity recognition: what is a person doing, from 2.56 s of the phone at the waist?"""

import torch

from anabranch.har import CHANNELS, CLASSES, LICENCE, WINDOW, load_test, load_training
from models.har_cnn.model import Config, HarCnn
from models.spec import Examples, Input, ModelSpec


def _examples() -> tuple[Examples, Examples]:
    return load_training(), load_test()


SPEC = ModelSpec(
    name="har_cnn",
    description="Six activities of a person, from 2.56 s of a phone's accelerometer and gyroscope at 50 Hz",
    licence=LICENCE,
    module=lambda: HarCnn(Config()),
    x=Input((WINDOW, len(CHANNELS)), torch.float32),
    labels=CLASSES,
    examples=_examples,
    hyper={"learning_rate": 0.03, "momentum": 0.9, "weight_decay": 1e-3},
    batch_size=32,
)
