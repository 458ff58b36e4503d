"""Fashion-MNIST: which of ten kinds of clothes is in a small grey picture?"""

import torch

from anabranch.datasets import fashion_mnist
from models.fashion_dscnn.model import Config, FashionDscnn
from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


def _examples() -> Splits:
    data = fashion_mnist.load()
    return Splits(data.train, data.validation, data.test)


SPEC = ModelSpec(
    name="fashion_dscnn",
    description="Ten kinds of clothes, from pictures of 28 by 28 pixels; a depthwise-separable network",
    licence=fashion_mnist.LICENCE,
    module=lambda: FashionDscnn(Config()),
    x=Input((fashion_mnist.SIDE, fashion_mnist.SIDE), torch.float32),
    labels=fashion_mnist.CLASSES,
    examples=_examples,
    optimizer=Sgd(learning_rate=0.02, momentum=0.9, weight_decay=1e-4),
    batch_size=32,
)
