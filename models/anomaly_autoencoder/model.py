# mypy: allow-subclassing-any
"""The whole model on one page: the spectrum that `fan_vibration` classifies, through a bottleneck and back."""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.fan_vibration.model import Config as SpectrumConfig
from models.fan_vibration.model import log_spectrum, welch_filters


@dataclass(frozen=True)
class Config:
    """Sizes of the network."""

    hidden: int = 64
    code: int = 16
    spectrum: SpectrumConfig = field(default_factory=SpectrumConfig)


class AnomalyAutoencoder(nn.Module):
    """Raw acceleration in g, (B, window, axes) -> mean squared error of the reconstructed spectrum, (B,).

    Both the loss and the anomaly score: a network that has seen balanced fans only cannot rebuild others as well.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        features = c.spectrum.axes * (c.spectrum.segment // 2 + 1)
        self.register_buffer("filters", welch_filters(c.spectrum.segment))
        self.encode = nn.Linear(features, c.hidden)
        self.encode2 = nn.Linear(c.hidden, c.code)
        self.decode = nn.Linear(c.code, c.hidden)
        self.decode2 = nn.Linear(c.hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        """Score windows of raw acceleration: the higher, the stranger."""
        spectrum = log_spectrum(x, self.filters, self.config.spectrum)  # (B, features)
        code = self.encode2(F.relu(self.encode(spectrum)))  # (B, code)
        rebuilt = self.decode2(F.relu(self.decode(code)))
        return (rebuilt - spectrum).square().mean(1)
