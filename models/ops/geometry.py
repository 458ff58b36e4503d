"""How a convolution's window moves: sizes that its lowerings share.

A convolution has a wide side, over which the window slides, and a narrow side, with one value for each place of the
window. An ordinary one goes from wide to narrow, a transposed one from narrow to wide; gradients go the other way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fl_protocol.errors import ConfigError


@dataclass(frozen=True)
class Geometry:
    """Sizes of one convolution over one or two dimensions; its weight is (narrow channels, wide per group, *kernel)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    wide_channels: int
    narrow_channels: int
    wide: tuple[int, ...]  # without batch and channels
    narrow: tuple[int, ...]

    @classmethod
    def of(cls, wide: fx.Node, narrow: fx.Node, weight: fx.Node, settings: Sequence[Any]) -> "Geometry":
        """That of traced tensors and aten's `stride, padding, dilation, transposed, output_padding, groups`.

        Raises `ConfigError` for three dimensions.
        """
        kernel = tuple(weight.meta["val"].shape[2:])
        if len(kernel) not in (1, 2):
            raise ConfigError(
                f"the model has a convolution over {len(kernel)} dimensions", "take nn.Conv1d or nn.Conv2d"
            )
        stride, padding, dilation = (tuple(part) * (len(kernel) // len(part)) for part in settings[:3])
        (wide_channels, *wide_sizes), (narrow_channels, *narrow_sizes) = (
            map(int, side.meta["val"].shape[1:]) for side in (wide, narrow)
        )
        return cls(
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=settings[5],
            wide_channels=wide_channels,
            narrow_channels=narrow_channels,
            wide=tuple(wide_sizes),
            narrow=tuple(narrow_sizes),
        )

    @property
    def num_taps(self) -> int:
        """Elements of the window."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether the window is one element and stands once on each: a matrix product of channels."""
        return self.num_taps == 1 and self.wide == self.narrow and not any(self.padding)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has a window of its own and nothing is summed over channels."""
        return self.groups == self.wide_channels == self.narrow_channels > 1

    @property
    def window(self) -> dict[str, Any]:
        """The attributes of ONNX's Conv and ConvTranspose."""
        return {
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": (*self.padding, *self.padding),
            "dilations": self.dilation,
            "group": self.groups,
        }

    @property
    def left_over(self) -> tuple[int, ...]:
        """What of the wide side, at its end, no window reaches."""
        sizes = zip(self.wide, self.narrow, self.stride, self.padding, self.dilation, self.kernel, strict=True)
        return tuple(w - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for w, n, s, p, d, k in sizes)

    @property
    def in_two_dimensions(self) -> "Geometry":
        """The same convolution over planes: a series is a plane of one row."""
        if len(self.kernel) == 2:
            return self
        return replace(
            self,
            kernel=(1, *self.kernel),
            stride=(1, *self.stride),
            padding=(0, *self.padding),
            dilation=(1, *self.dilation),
            wide=(1, *self.wide),
            narrow=(1, *self.narrow),
        )

    @property
    def mirrored(self) -> "Geometry | None":
        """The convolution that takes the narrow side back to the wide one; there is one for a stride of 1."""
        padding = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, self.kernel, self.padding, strict=True))
        if set(self.stride) != {1} or min(padding) < 0:
            return None
        return replace(
            self,
            padding=padding,
            wide_channels=self.narrow_channels,
            narrow_channels=self.wide_channels,
            wide=self.narrow,
            narrow=self.wide,
        )
