# mypy: allow-subclassing-any
"""The models whose bytes are counted: perceptrons that one core trains in a minute a run, of 38k and 200k
parameters, and one of a million.

Each is a `ModelSpec` as any user writes it (docs/bring-your-own-model.md); they stand here and not in the catalog,
since they exist to be compared. `bundle_of` compiles one, the same bytes at every call.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the workshop is not installed: it lives in the checkout

from fl_protocol.durable import write_durably
from models.build import build
from models.fashion_dscnn import SPEC as FASHION
from models.fashion_dscnn.model import DEVIATION, MEAN
from models.har_cnn import SPEC as HAR
from models.har_cnn.model import Config, HarCnn
from models.optimizers import Sgd
from models.spec import ModelSpec

INITIAL_SEED = 0


class HarMlp(HarCnn):
    """Signals, (B, 128, 9) -> logits, (B, 6): the spectrum and the means of har_cnn, through two hidden layers."""

    def __init__(self, hidden: int, hidden2: int) -> None:
        super().__init__(Config())
        features = self.classify.in_features - self.conv3.out_channels
        del self.conv, self.conv2, self.conv3
        self.dense = nn.Linear(features, hidden)
        self.dense2 = nn.Linear(hidden, hidden2)
        self.classify = nn.Linear(hidden2, self.config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify windows of raw signals."""
        signals = ((x - self.mean) / self.deviation).transpose(1, 2)  # (B, 9, 128)
        h = torch.cat([self.spectrum(signals), signals.mean(2)], 1)  # (B, 198)
        h = torch.relu(self.dense2(torch.relu(self.dense(h))))  # (B, hidden2)
        logits: Tensor = self.classify(h)
        return logits


class FashionMlp(nn.Module):
    """Pictures, (B, 28, 28) -> logits, (B, 10): one hidden layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(28 * 28, hidden)
        self.classify = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pictures."""
        h = torch.relu(self.dense(torch.flatten((x - MEAN) / DEVIATION, 1)))  # (B, hidden)
        logits: Tensor = self.classify(h)
        return logits


def _seeded(module: Callable[[], nn.Module]) -> nn.Module:
    """With the same initial parameters at every call."""
    torch.manual_seed(INITIAL_SEED)
    return module()


def _har(name: str, hidden: int, hidden2: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        description=f"Six activities, from the spectra of a phone's signals; {hidden} and {hidden2} hidden units",
        licence=HAR.licence,
        module=partial(_seeded, partial(HarMlp, hidden, hidden2)),
        x=HAR.x,
        labels=HAR.labels,
        examples=HAR.examples,
        optimizer=Sgd(learning_rate=0.03, momentum=0.9, weight_decay=1e-3),
        batch_size=32,
    )


def _fashion(name: str, hidden: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        description=f"Ten kinds of clothes, from pictures of 28 by 28 pixels; {hidden} hidden units",
        licence=FASHION.licence,
        module=partial(_seeded, partial(FashionMlp, hidden)),
        x=FASHION.x,
        labels=FASHION.labels,
        examples=FASHION.examples,
        optimizer=Sgd(learning_rate=0.02, momentum=0.9, weight_decay=1e-4),
        batch_size=32,
    )


SPECS: dict[str, ModelSpec] = {
    "har_mlp_38k": _har("har_mlp_38k", 144, 64),
    "har_mlp_200k": _har("har_mlp_200k", 512, 192),
    "fashion_mlp_50k": _fashion("fashion_mlp_50k", 64),
    "fashion_mlp_200k": _fashion("fashion_mlp_200k", 256),
    "fashion_mlp_1m": _fashion("fashion_mlp_1m", 1258),
}


def bundle_of(name: str, folder: Path) -> Path:
    """The model's bundle as a file in `folder`, built where it is not there yet. Raises `KeyError`, `OSError`."""
    path = folder / f"{name}.bundle"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, build(SPECS[name]))
    return path
