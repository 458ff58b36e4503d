# mypy: allow-subclassing-any
"""The whole model on one page: three convolutions over time, their average, and a linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fl_protocol.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Sizes of the network, and the training people's mean and deviation of each signal."""

    window: int = 128  # samples: 2.56 s
    channels: int = 16
    channels2: int = 32
    channels3: int = 32
    taps: int = 3
    classes: int = 6
    # body acceleration in g, angular velocity in rad/s, total acceleration in g; x, y, z each
    mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.04, 0.09)
    deviation: tuple[float, ...] = (0.2, 0.12, 0.1, 0.41, 0.36, 0.25, 0.41, 0.4, 0.34)


class HarCnn(nn.Module):
    """Raw signals, (B, window, 9) -> logits, (B, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("mean", torch.tensor(c.mean))
        self.register_buffer("deviation", torch.tensor(c.deviation))
        self.conv = Conv1d(len(c.mean), c.channels, c.taps, stride=2)
        self.conv2 = Conv1d(c.channels, c.channels2, c.taps, stride=2)
        self.conv3 = Conv1d(c.channels2, c.channels3, c.taps)
        self.classify = nn.Linear(c.channels3, c.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify windows of raw signals."""
        h = (x - self.mean) / self.deviation
        h = F.relu(self.conv(h))  # (B, 62, channels)
        h = F.relu(self.conv2(h))  # (B, 29, channels2)
        h = F.relu(self.conv3(h))  # (B, 27, channels3)
        logits: Tensor = self.classify(h.mean(1))
        return logits  # (B, classes)


class Conv1d(nn.Module):
    """A convolution over time without padding, written as a linear layer over patches: so it is quantized like one.

    Input (B, T, in), output (B, T / stride - taps + 1, out). A stride folds that many samples into one wide one, so
    the kernel spans `taps * stride` samples and T must be a multiple of `stride`. Rows of the linear layer's weight lie
    by time, then by channel: reshaped to (out, taps * stride, in), they are torch's kernel with its last axes swapped.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, stride: int = 1) -> None:
        super().__init__()
        self.taps, self.stride = taps, stride
        self.linear = nn.Linear(taps * stride * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Slide the kernel over time. Raises `ConfigError` for samples that the stride leaves over."""
        if x.shape[1] % self.stride:
            raise ConfigError(f"{x.shape[1]} samples with a stride of {self.stride}", "take a multiple of the stride")
        wide = x.reshape(-1, x.shape[1] // self.stride, self.stride * x.shape[2])
        steps = wide.shape[1] - self.taps + 1
        patches = torch.cat([wide[:, tap : tap + steps] for tap in range(self.taps)], 2)
        out: Tensor = self.linear(patches.reshape(-1, patches.shape[2]))  # (B * steps, out)
        return out.reshape(-1, steps, out.shape[1])
