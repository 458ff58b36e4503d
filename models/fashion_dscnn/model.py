# mypy: allow-subclassing-any
"""The whole model on one page: depthwise-separable convolutions with batch normalisation (MobileNet's blocks)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MEAN, DEVIATION = 0.286, 0.353  # of the training pictures, 0 white to 1 black


@dataclass(frozen=True)
class Config:
    """Sizes of the network. A block is (channels, stride)."""

    stem: int = 16
    blocks: tuple[tuple[int, int], ...] = ((24, 1), (80, 2), (128, 1))  # few where planes are large: memory
    classes: int = 10


class FashionDscnn(nn.Module):
    """Pictures of clothes, (B, 28, 28) from 0 to 1 -> logits, (B, classes)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = normalised(nn.Conv2d(1, config.stem, 3, stride=2, padding=1, bias=False))
        channels, blocks = config.stem, []
        for outputs, stride in config.blocks:
            blocks.append(separable(channels, outputs, stride))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(channels, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pictures."""
        h = self.stem((x.unsqueeze(1) - MEAN) / DEVIATION)  # (B, stem, 14, 14)
        h = self.pool(self.blocks(h))  # (B, channels, 1, 1), the mean over planes of 7 by 7
        logits: Tensor = self.classify(torch.flatten(h, 1))
        return logits  # (B, classes)


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A convolution of 3 by 3 in two: over each plane alone, then across channels (Howard et al., 2017)."""
    return nn.Sequential(
        *normalised(nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)),
        *normalised(nn.Conv2d(inputs, outputs, 1, bias=False)),
    )


def normalised(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution, then batch normalisation and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())
