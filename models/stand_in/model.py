# mypy: allow-subclassing-any
"""The whole model on one page, and hardly that: a perceptron of 355 parameters."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """Sizes of the network."""

    inputs: int = 40
    hidden: int = 8
    classes: int = 3


class StandIn(nn.Module):
    """Numbers, (B, inputs) -> logits, (B, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.inputs, config.hidden)
        self.classify = nn.Linear(config.hidden, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify examples."""
        logits: Tensor = self.classify(F.relu(self.hidden(x)))
        return logits  # (B, classes)
