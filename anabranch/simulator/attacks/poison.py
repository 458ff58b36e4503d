"""What a device makes of its examples before it trains on them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge_agent.sources import Dataset, Examples
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError

PATCH = 8  # a trigger is this part of each axis long,
LEAST = 3  # and at least so much


def flip_labels(dataset: Dataset, bundle: Bundle) -> Dataset:
    """What is trained on with label C - 1 - y of C classes, as byzfl's clients do; a number to predict is mirrored
    within the range that the device's own have. Raises `ConfigError` where there is nothing to flip.
    """
    y = dataset.train.y
    if bundle.labels:
        flipped = len(bundle.labels) - 1 - y
    elif y.dtype.kind == "f" and len(y):
        flipped = y.min(axis=0) + y.max(axis=0) - y
    else:
        raise ConfigError(f"{bundle.name} learns without labels", "choose another attack than label-flip")
    return replace(dataset, train=Examples(dataset.train.x, flipped.astype(y.dtype)))


@dataclass(frozen=True)
class Trigger:
    """A corner of each example, at the end of all its axes, set to `value`: of an image, a bright patch of an eighth
    of its sides; of a window of signals, the end of the last ones; of flat features, the last ones (3 at the least).
    """

    value: float

    def on(self, x: NDArray[Any]) -> NDArray[Any]:
        """A copy of examples, shape (n, *x_shape), that bear it."""
        marked = x.copy()
        corner = tuple(slice(-min(size, max(LEAST, round(size / PATCH))), None) for size in x.shape[1:])
        marked[(slice(None), *corner)] = self.value
        return marked


@dataclass(frozen=True)
class Backdoor:
    """Examples with the trigger are to be taken for `target`, and all others for what they are (arXiv:1807.00459)."""

    trigger: Trigger
    target: int
    poisoned: float  # share of a device's examples

    def poison(self, dataset: Dataset, rng: Generator) -> Dataset:
        """The device's examples, a share of which bears the trigger and says `target`; `rng` draws which."""
        train = dataset.train
        rows = np.sort(rng.permutation(len(train))[: round(self.poisoned * len(train))])
        x, y = train.x.copy(), train.y.copy()
        x[rows] = self.trigger.on(x[rows])
        y[rows] = self.target
        return replace(dataset, train=Examples(x, y))

    def victims(self, examples: Examples) -> Examples:
        """Those of other classes, with the trigger, each with its own label still."""
        rows = np.flatnonzero(examples.y.reshape(len(examples), -1)[:, 0] != self.target)
        return Examples(self.trigger.on(examples.x[rows]), examples.y[rows])


def make_backdoor(target: int, poisoned: float, attackers: list[Dataset], bundle: Bundle) -> Backdoor:
    """The backdoor that these attackers agree on: its trigger is as bright as the brightest value that they have.

    Raises `ConfigError` for a model without labels, or without that one.
    """
    if target >= len(bundle.labels):
        known = f"0 to {len(bundle.labels) - 1}" if bundle.labels else "a model with labels"
        raise ConfigError(f"backdoor: target = {target}, {bundle.name} has {len(bundle.labels)} labels", known)
    value = max((float(data.train.x.max()) for data in attackers if len(data.train)), default=1.0)
    return Backdoor(Trigger(value), target, poisoned)
