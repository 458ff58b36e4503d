# mypy: allow-subclassing-any
"""The whole model on one page: convolutions over time beside a power spectrum by fixed filters, and a linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.fan_vibration.model import welch_filters


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and the training people's mean and deviation of each signal.

    At 50 Hz a segment of 64 samples makes bins of 0.8 Hz; of its 32 the first 20 hold what people do.
    """

    window: int = 128  # samples: 2.56 s
    channels: int = 16
    channels2: int = 32
    channels3: int = 32
    segment: int = 64
    bins: int = 20
    power_floor: float = 1e-3
    level_middle: float = -4.5  # of the mean log power of a signal
    level_spread: float = 2.5
    tilt: float = 0.155  # by so much the log power falls from bin to bin, on average
    shape_scale: float = 0.3
    classes: int = 6
    # body acceleration in g, angular velocity in rad/s, total acceleration in g; x, y, z each
    mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.04, 0.09)
    deviation: tuple[float, ...] = (0.2, 0.12, 0.1, 0.41, 0.36, 0.25, 0.41, 0.4, 0.34)


class HarCnn(nn.Module):
    """Raw signals, (B, window, 9) -> logits, (B, classes).

    Convolutions learn what a movement looks like; the spectrum says how strong and how fast it is, and the means how
    the phone lies, which people differ less in. One linear layer on all three is what holds for people nobody knew.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        signals = len(c.mean)
        self.register_buffer("mean", torch.tensor(c.mean))
        self.register_buffer("deviation", torch.tensor(c.deviation))
        waves = welch_filters(c.segment).reshape(c.segment, 2, -1)[:, :, : c.bins]  # cosines, then sines
        self.register_buffer("filters", waves.reshape(c.segment, -1))
        self.register_buffer("expected", c.tilt * ((c.bins - 1) / 2 - torch.arange(c.bins)))  # the shape of most
        self.conv = nn.Conv1d(signals, c.channels, 7, stride=2, padding=3)
        self.conv2 = nn.Conv1d(c.channels, c.channels2, 7, stride=2, padding=3)
        self.conv3 = nn.Conv1d(c.channels2, c.channels3, 3, padding=1)
        self.classify = nn.Linear(c.channels3 + signals * (c.bins + 2), c.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify windows of raw signals."""
        signals = ((x - self.mean) / self.deviation).transpose(1, 2)  # (B, 9, window)
        h = F.relu(self.conv(signals))  # (B, channels, 64)
        h = F.relu(self.conv2(h))  # (B, channels2, 32)
        h = F.relu(self.conv3(h))  # (B, channels3, 32)
        logits: Tensor = self.classify(torch.cat([h.mean(2), self.spectrum(signals), signals.mean(2)], 1))
        return logits  # (B, classes)

    def spectrum(self, signals: Tensor) -> Tensor:
        """Level and shape of each signal's power, normalised, (B, 9 * (1 + bins)).

        Apart and about zero: raw log powers all rise and fall together, and gradient descent that follows them all at
        once swings, most of all in a federation that is asynchronous. Of their second moments the largest eigenvalue
        was 250 times the third; of what stands here it is 13 times.
        """
        log_power = self.log_power(signals)
        c = self.config
        level = log_power.mean(2, keepdim=True)  # (B, 9, 1)
        shape = (log_power - level - self.expected) * c.shape_scale
        return torch.cat([shape, (level - c.level_middle) / c.level_spread], 2).flatten(1)

    def log_power(self, signals: Tensor) -> Tensor:
        """Logarithm of the power of each signal in bins, (B, 9, bins): Welch, 1967."""
        c = self.config
        hop = c.segment // 2
        halves = signals.reshape(-1, c.window // hop, hop)  # (B * 9, window / hop, hop)
        segments = torch.cat([halves[:, :-1], halves[:, 1:]], 2)  # each overlaps half of the next
        waves = segments.reshape(-1, c.segment) @ self.filters  # (B * 9 * segments, 2 * bins)
        power = waves.square().reshape(-1, c.window // hop - 1, 2 * c.bins).mean(1)
        power = power[:, : c.bins] + power[:, c.bins :]  # cosine and sine
        return torch.log(power + c.power_floor).reshape(-1, len(c.mean), c.bins)
