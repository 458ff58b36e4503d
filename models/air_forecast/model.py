# mypy: allow-subclassing-any
"""The whole model on one page: convolutions over 24 hours say by which factor the fine dust of now will change."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and the training stations' mean and deviation of each column.

    In order, log(1 + concentration) of PM2.5, PM10, SO2, NO2, CO and O3; temperature in deg C, pressure in hPa, dew
    point in deg C, rain in mm, wind in m/s; sine and cosine of the wind's direction and of the hour; the share of stale
    readings. Rain and stale readings are rare: their deviation is set by hand, that they do not come as shocks.
    """

    channels: int = 24
    hidden: int = 32
    pollutants: int = 6  # the first columns
    mean: tuple[float, ...] = (
        *(3.93, 4.3, 2.35, 3.7, 6.8, 3.42),
        *(14.3, 1009.9, 3.5, 0.06, 1.67, 0.06, 0.1, 0.0, 0.0, 0.01),
    )
    deviation: tuple[float, ...] = (
        *(1.08, 0.98, 1.05, 0.81, 0.81, 1.34),
        *(11.1, 10.2, 13.4, 1.0, 1.24, 0.71, 0.69, 0.71, 0.71, 0.1),
    )


class AirForecast(nn.Module):
    """Hours at a station, (B, 24, 16), the last one now -> PM2.5 in ug/m3 six hours later, (B, 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("mean", torch.tensor(c.mean))
        self.register_buffer("deviation", torch.tensor(c.deviation))
        self.conv = nn.Conv1d(len(c.mean), c.channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(c.channels, c.channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(c.channels, c.channels, 3, stride=2, padding=1)
        self.hidden = nn.Linear(3 * c.channels, c.hidden)
        self.change = nn.Linear(c.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast from raw readings."""
        split = self.config.pollutants
        logs = torch.log1p(F.relu(x[:, :, :split]))  # what spreads over orders of magnitude
        h = (torch.cat([logs, x[:, :, split:]], 2) - self.mean) / self.deviation
        h = F.relu(self.conv(h.transpose(1, 2)))  # (B, channels, 12)
        h = F.relu(self.conv2(h))  # (B, channels, 6)
        h = F.relu(self.conv3(h))  # (B, channels, 3)
        h = F.relu(self.hidden(h.flatten(1)))
        return x[:, -1, :1] * torch.exp(self.change(h))  # (B, 1)
