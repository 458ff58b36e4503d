# mypy: allow-subclassing-any
"""The whole model on one page: fill in what is missing, scale, and a small multilayer perceptron."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and of each known feature the training patients' median, mean and deviation.

    In order: age, sex, chest pain, blood pressure, cholesterol, blood sugar, resting ECG, heart rate, angina,
    oldpeak, slope, vessels, thal.
    """

    hidden: int = 8
    dropout: float = 0.2
    median: tuple[float, ...] = (55.0, 1.0, 4.0, 130.0, 238.0, 0.0, 0.0, 140.0, 0.0, 0.5, 2.0, 0.0, 6.0)
    mean: tuple[float, ...] = (53.6, 0.79, 3.24, 131.8, 246.5, 0.17, 0.6, 138.5, 0.39, 0.88, 1.75, 0.75, 5.12)
    deviation: tuple[float, ...] = (9.4, 0.41, 0.94, 18.6, 60.8, 0.38, 0.8, 25.3, 0.49, 1.08, 0.61, 0.94, 1.91)


class HeartMlp(nn.Module):
    """Patients, (B, 26): 13 values, 0 where not known, and 13 flags, 1 where not known -> one logit, (B,)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        for name in ("median", "mean", "deviation"):
            self.register_buffer(name, torch.tensor(getattr(c, name)))
        self.hidden = nn.Linear(2 * len(c.mean), c.hidden)
        self.dropout = nn.Dropout(c.dropout)
        self.diagnose = nn.Linear(c.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logit of a disease."""
        value, missing = x.chunk(2, 1)  # (B, 13) each
        scaled = (value + missing * self.median - self.mean) / self.deviation
        h = F.relu(self.hidden(torch.cat([scaled, missing], 1)))
        logit: Tensor = self.diagnose(self.dropout(h))
        return logit.squeeze(1)  # (B,)
