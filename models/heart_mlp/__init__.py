"""Heart disease: is a vessel of this patient's heart narrowed, from what four hospitals write down?"""

import torch

from anabranch.datasets import load
from anabranch.datasets.heart_disease import CLASSES, COLUMNS, LICENCE
from models.heart_mlp.model import Config, HeartMlp
from models.losses import binary_cross_entropy
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    data = load("heart_disease")
    return Splits(data.train, data.validation, data.test)


SPEC = ModelSpec(
    name="heart_mlp",
    description="Whether a heart's vessel is narrowed, from 13 findings of which many are missing",
    licence=LICENCE,
    module=lambda: HeartMlp(Config()),
    x=Input((len(COLUMNS),), torch.float32),
    labels=CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.03, momentum=0.9, weight_decay=1e-2),
    loss=binary_cross_entropy,
    batch_size=16,
)
