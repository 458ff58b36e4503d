"""What a device makes of its own honest result. `delta` is what it learnt, float32 of shape (P,)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anabranch.simulator.attacks.kinds import Terms
from edge_agent.events import Train
from edge_agent.training import TrainingResult
from fl_protocol.tensors import Vector

Attack = Callable[[TrainingResult, Train], TrainingResult]
Change = Callable[[Vector, Generator], NDArray[np.floating]]


def on_delta(change: Change) -> Attack:
    """An attack that sends `change(delta, rng)` in the delta's place; statistics and metrics stay as they are."""

    def attack(result: TrainingResult, order: Train) -> TrainingResult:
        base = order.base[: len(result.parameters)]
        return replace(result, parameters=base + change(result.parameters - base, order.rng).astype(np.float32))

    return attack


def scaled(scale: float) -> Attack:
    """`scale` times what was learnt; by less than nothing it is the sign flip.

    byzfl's SignFlipping sends the opposite of the honest *mean*; a device that knows only itself has its own delta.
    """
    return on_delta(lambda delta, _: np.float32(scale) * delta)


def noise(scale: float) -> Attack:
    """Gaussian noise whose norm is `scale` times that of what was learnt; byzfl's Gaussian has a fixed sigma."""

    def change(delta: Vector, rng: Generator) -> Vector:
        step = rng.standard_normal(len(delta)).astype(np.float32)
        norm = scale * float(np.linalg.norm(delta.astype(np.float64)))
        return step * np.float32(norm / max(1e-12, float(np.linalg.norm(step.astype(np.float64)))))

    return on_delta(change)


def make_attack(terms: Terms) -> Attack | None:
    """What becomes of the result of a device that attacks alone; None: nothing."""
    scale = 1.0 if terms.scale is None else terms.scale
    match terms.kind:
        case "sign-flip":
            return scaled(-scale)
        case "scaled" | "label-flip" | "backdoor":  # of a backdoor it is the model replacement, arXiv:1807.00459
            return scaled(scale) if scale != 1.0 else None
        case "free-ride":
            return scaled(0.0)
        case "noise":
            return noise(scale)
    return None
