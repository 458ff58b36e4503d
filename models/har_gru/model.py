# mypy: allow-subclassing-any
"""The whole model on one page: a GRU over sixteenths of a window, the average of its outputs, and a linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and the training people's mean and deviation of each signal."""

    folded: int = 8  # samples that make one time step; 128 of them are 16 steps
    hidden: int = 48
    classes: int = 6
    # body acceleration in g, angular velocity in rad/s, total acceleration in g; x, y, z each
    mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.04, 0.09)
    deviation: tuple[float, ...] = (0.2, 0.12, 0.1, 0.41, 0.36, 0.25, 0.41, 0.4, 0.34)


class HarGru(nn.Module):
    """Raw signals, (B, window, 9) -> logits, (B, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("mean", torch.tensor(c.mean))
        self.register_buffer("deviation", torch.tensor(c.deviation))
        self.gru = nn.GRU(c.folded * len(c.mean), c.hidden, batch_first=True)
        self.classify = nn.Linear(c.hidden, c.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify windows of raw signals."""
        h = (x - self.mean) / self.deviation
        folded = h.reshape(-1, x.shape[1] // self.config.folded, self.config.folded * x.shape[2])  # (B, 16, 72)
        outputs, _ = self.gru(folded)  # (B, 16, hidden)
        logits: Tensor = self.classify(outputs.mean(1))
        return logits  # (B, classes)
