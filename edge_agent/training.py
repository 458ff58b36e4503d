"""What is asked of a trainer, and what it gives; how it does that is trainer.py's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from numpy.random import Generator

from edge_agent.sources import Dataset
from fl_protocol.bundle import Bundle
from fl_protocol.tensors import Vector

__all__ = ["Provider", "Trainer", "TrainerFactory", "TrainingResult", "WorkOrder"]

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]  # of onnxruntime, as the configuration names them


@dataclass(frozen=True)
class WorkOrder:
    """How much to train and with what; from the plan, with the bundle's defaults."""

    batch_size: int
    local_epochs: int
    max_local_steps: int
    hyper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """What training made of a base version. `metrics` are the base's on the held-out examples, and the last loss."""

    parameters: Vector  # shape (P,)
    statistics: Vector  # shape (layout.size - P,)
    personal: Vector
    num_examples: int
    local_steps: int
    train_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains one bundle's model."""

    def train(
        self,
        base: Vector,
        dataset: Dataset,
        order: WorkOrder,
        personal: Vector,
        rng: Generator,
        should_pause: Callable[[], bool],
    ) -> TrainingResult:
        """Train from `base`, shape (layout.size,), with the optimizer's state at zero.

        Waits while `should_pause()`; whatever that raises abandons the training. Raises `ProtocolError` for a graph
        that does not run (E_SCHEMA), a step that memory does not suffice for (E_SIZE), and a loss that is
        not finite (E_NAN).
        """


TrainerFactory = Callable[[Bundle], Trainer]
