"""Small specs for tests of the workshop: made up, and quick to compile."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from models.optimizers import Sgd
from models.spec import Input, ModelSpec, Splits


class Parted(nn.Module):
    """A backbone with normalisation and dropout, and a head: numbers (B, 4) -> logits (B, 3)."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.25))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def examples(y_of=lambda x: x[:, :3].argmax(1), n=300):
    x = np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)
    y = np.asarray(y_of(x))
    third = n // 3
    return Splits(*((x[i : i + third], y[i : i + third]) for i in range(0, n, third)))


TOY = ModelSpec(
    name="toy",
    description="",
    licence="made up",
    module=plain,
    x=Input((4,), torch.float32),
    labels=("a", "b", "c"),
    examples=examples,
    optimizer=Sgd(learning_rate=0.05),
)
FLOAT = Input((), torch.float32)


def toy(**changed):
    return replace(TOY, **changed)


def module_of(function, inner=None):
    """A module that computes `function(inner(x))`."""

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner or nn.Linear(4, 3)

        def forward(self, x):
            return function(self.inner(x))

    return Made


def given(step, batch=5, seed=0, **more):
    """Everything a training step takes, on random examples."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.standard_normal((batch, *step.spec.x.shape)), dtype=torch.float32)
    y = torch.tensor(
        rng.integers(0, max(len(step.spec.labels), 1), (batch, *step.spec.y.shape)), dtype=step.spec.y.dtype
    )
    hyper = {name: torch.tensor(value) for name, value in step.spec.optimizer.hyper.items()}
    base = {f"{name}.base": tensor for name, tensor in step.parameters.items()}
    return {**step.entries, **step.constants, "x": x, "y": y, **hyper, **base, "seed": torch.tensor(seed), **more}
