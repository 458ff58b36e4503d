"""Recommendation: how many stars would this person give a film, by what stays on the person's own device?"""

import torch

from anabranch.datasets import load
from anabranch.datasets.ratings import LICENCE
from models.losses import squared_error
from models.metrics import ABSOLUTE_ERROR
from models.optimizers import Sgd
from models.recommender.model import Config, Recommender
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    """Of all people at once, as only the gates see them: to those, `person` is a single one of average taste."""
    data = load("ratings")
    return Splits(data.train, data.validation, data.test)


SPEC = ModelSpec(
    name="recommender",
    description="A person's stars for a film, by matrix factorisation; the person's factors never leave the device",
    licence=LICENCE,
    module=lambda: Recommender(Config()),
    x=Input((1,), torch.int64),
    y=Input((1,), torch.float32),
    labels=(),
    examples=_examples,
    optimizer=Sgd(learning_rate=0.1, momentum=0.5, weight_decay=1e-3),
    loss=squared_error,
    metric=ABSOLUTE_ERROR,
    batch_size=16,
    personal=("person",),
)
