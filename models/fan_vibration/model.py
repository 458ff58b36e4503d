# mypy: allow-subclassing-any
"""The whole model on one page: Welch's power spectrum as fixed filters, then a small perceptron."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """Sizes of the network; at 50 Hz a segment of 50 samples makes bins of 1 Hz."""

    window: int = 200  # samples: 4 s
    segment: int = 50
    axes: int = 3
    hidden: int = 64
    hidden2: int = 32
    classes: int = 3
    power_floor: float = 1e-6
    level_middle: float = -5.0
    level_spread: float = 3.0


class FanVibration(nn.Module):
    """Raw acceleration in g, (B, window, axes) -> logits, (B, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("filters", welch_filters(config.segment))
        bins = config.segment // 2
        self.hidden = nn.Linear(config.axes * (bins + 1), config.hidden)
        self.hidden2 = nn.Linear(config.hidden, config.hidden2)
        self.classify = nn.Linear(config.hidden2, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify windows of raw acceleration."""
        h = F.relu(self.hidden(self.spectrum(x)))
        h = F.relu(self.hidden2(h))
        logits: Tensor = self.classify(h)
        return logits  # (B, classes)

    def spectrum(self, x: Tensor) -> Tensor:
        """Log power in bins of 1 Hz, normalised, (B, axes * (bins + 1))."""
        return log_spectrum(x, self.filters, self.config)


def log_spectrum(x: Tensor, filters: Tensor, config: Config) -> Tensor:
    """Of each axis the log power in each bin less its mean, then that mean, normalised: (B, axes * (bins + 1)).

    `x` is raw acceleration in g, (B, window, axes); `filters` are `welch_filters(config.segment)`.
    """
    c = config
    bins, hop = c.segment // 2, c.segment // 2
    halves = x.transpose(1, 2).reshape(-1, c.window // hop, hop)  # (B * axes, window / hop, hop)
    segments = torch.cat([halves[:, :-1], halves[:, 1:]], 2)  # each overlaps half of the next
    waves = segments.reshape(-1, c.segment) @ filters  # (B * axes * segments, 2 * bins)
    power = waves.square().reshape(-1, c.window // hop - 1, 2 * bins).mean(1)  # Welch: the mean of periodograms
    power = power[:, :bins] + power[:, bins:]  # cosine and sine
    log_power = torch.log(power + c.power_floor).reshape(-1, c.axes, bins)
    level = log_power.mean(2, keepdim=True)  # (B, axes, 1)
    shape = log_power - level
    return torch.cat([shape, (level - c.level_middle) / c.level_spread], 2).flatten(1)


def welch_filters(segment: int) -> Tensor:
    """Cosines and sines of 1 .. segment/2 cycles under a Hann window, (segment, 2 * bins).

    Their outputs, squared and summed, are a periodogram (Welch, 1967). Each sums to zero, so that gravity and tilt
    leave no trace.
    """
    samples = np.arange(segment)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * samples / segment)
    angles = 2 * np.pi * np.outer(samples, np.arange(1, segment // 2 + 1)) / segment
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * hann[:, None] / np.sqrt(segment)
    waves -= waves.mean(0)
    return torch.tensor(waves, dtype=torch.float32)
