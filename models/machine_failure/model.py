# mypy: allow-subclassing-any
"""The whole model on one page: three quantities that wear a machine down, scaling, and a multilayer perceptron."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and mean and deviation of each quantity over the training cuts.

    In order: air and process temperature in K, speed in 1/min, torque in Nm, tool wear in min, variants L, M and H;
    then what `forward` derives: power in W, the difference of the temperatures, torque times wear.
    """

    hidden: int = 32
    hidden2: int = 16
    mean: tuple[float, ...] = (300.0, 310.0, 1538.0, 40.0, 107.0, 0.6, 0.3, 0.1, 6284.0, 10.0, 4292.0)
    deviation: tuple[float, ...] = (2.0, 1.5, 179.0, 10.0, 63.0, 0.5, 0.46, 0.3, 1071.0, 1.0, 2817.0)


class MachineFailure(nn.Module):
    """Readings of a cut, (B, 8) -> one logit of a failure, (B,)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("mean", torch.tensor(c.mean))
        self.register_buffer("deviation", torch.tensor(c.deviation))
        self.hidden = nn.Linear(len(c.mean), c.hidden)
        self.hidden2 = nn.Linear(c.hidden, c.hidden2)
        self.judge = nn.Linear(c.hidden2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logit of a failure."""
        air, process, speed, torque, wear = (x[:, i : i + 1] for i in range(5))
        power = torque * speed * (2 * math.pi / 60)
        derived = torch.cat([x, power, process - air, torque * wear], 1)  # (B, 11)
        h = F.relu(self.hidden((derived - self.mean) / self.deviation))
        h = F.relu(self.hidden2(h))
        logit: Tensor = self.judge(h)
        return logit.squeeze(1)  # (B,)
