"""Optimizers inside the training graph: parameters, gradients and state in, their following values out.

Options that are None are left out of the graph; all others are hyperparameters of the bundle, which a plan may change.
What comes first: the gradient of the loss, the proximal term (FedProx: Li et al., 2020), clipping of both by their
global norm, then the optimizer. State starts from zero at each new base version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from fl_protocol.bundle import Feed
from fl_protocol.errors import ConfigError

Tensors = dict[str, Tensor]

_NORM_FLOOR = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share. A subclass has its options as fields; each is a hyperparameter of its name."""

    learning_rate: float
    proximal: float | None = None  # mu / 2 * |parameters - base|^2 is added to the loss
    clip_norm: float | None = None  # the largest norm of all gradients together; 0: as long as they like

    gradient_entry: ClassVar[str]  # of the entries of each parameter, the one that is its gradient under `bare`
    bare: ClassVar[Mapping[str, float]]  # hyperparameters under which it is

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{type(self).__name__}: {name} is {value}", "a finite number, 0 or above")
            if name.startswith("beta") and value >= 1:
                raise ConfigError(f"{type(self).__name__}: {name} is {value}", "below 1: it is a share that is kept")

    @property
    def hyper(self) -> dict[str, float]:
        """The training graph's scalar inputs and their defaults."""
        return {name: float(value) for name, value in vars(self).items() if value is not None}

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """What the graph takes beside them."""
        return ("base",) if self.proximal is not None else ()

    def entries(self, parameters: Tensors) -> Tensors:
        """The optimizer's state where it starts: named tensors of zeros."""
        raise NotImplementedError

    def step(self, parameters: Tensors, gradients: Tensors, given: Mapping[str, Tensor]) -> Tensors:
        """Following values of parameters and state, by their entry's name. `given` has hyper, state and base."""
        return self._following(parameters, self._bounded(parameters, gradients, given), given)

    def _following(self, parameters: Tensors, gradients: Tensors, given: Mapping[str, Tensor]) -> Tensors:
        raise NotImplementedError

    def _bounded(self, parameters: Tensors, gradients: Tensors, given: Mapping[str, Tensor]) -> Tensors:
        if self.proximal is not None:
            based = [name for name in gradients if f"{name}.base" in given]  # personal ones have no base version
            pulls = {name: given["proximal"] * (parameters[name] - given[f"{name}.base"]) for name in based}
            gradients = {name: g + pulls[name] if name in pulls else g for name, g in gradients.items()}
        if self.clip_norm is not None:
            squares = [gradient.square().sum() for gradient in gradients.values()]
            norm, limit = torch.sqrt(sum(squares[1:], squares[0])), given["clip_norm"]
            factor = torch.where(limit > 0, (limit / (norm + _NORM_FLOOR)).clamp(max=1.0), torch.ones_like(limit))
            gradients = {name: gradient * factor for name, gradient in gradients.items()}
        return gradients


@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Gradient descent with momentum, and weight decay added to the gradient (L2), as torch.optim.SGD has them."""

    momentum: float = 0.9
    weight_decay: float = 0.0

    gradient_entry: ClassVar[str] = "momentum"
    bare: ClassVar[Mapping[str, float]] = {"momentum": 0.0, "weight_decay": 0.0}

    def entries(self, parameters: Tensors) -> Tensors:
        """A momentum for each parameter."""
        return {f"{name}.momentum": torch.zeros_like(p) for name, p in parameters.items()}

    def _following(self, parameters: Tensors, gradients: Tensors, given: Mapping[str, Tensor]) -> Tensors:
        following, momenta = {}, {}
        for name, parameter in parameters.items():
            decayed = gradients[name] + given["weight_decay"] * parameter
            momentum = given["momentum"] * given[f"{name}.momentum"] + decayed
            momenta[f"{name}.momentum"] = momentum
            following[name] = parameter - given["learning_rate"] * momentum
        return {**following, **momenta}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019): torch.optim.AdamW."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    gradient_entry: ClassVar[str] = "first_moment"
    bare: ClassVar[Mapping[str, float]] = {"beta1": 0.0}

    def entries(self, parameters: Tensors) -> Tensors:
        """Two moments for each parameter, and the number of steps so far."""
        moments = {
            f"{name}.{moment}": torch.zeros_like(p)
            for name, p in parameters.items()
            for moment in ("first_moment", "second_moment")
        }
        return {**moments, "steps": torch.zeros(())}

    def _following(self, parameters: Tensors, gradients: Tensors, given: Mapping[str, Tensor]) -> Tensors:
        steps = given["steps"] + 1
        beta1, beta2 = given["beta1"], given["beta2"]
        # Both corrections are moved from the tensors to the scalars: the fewer nodes, the faster a small model.
        root = _one_minus_power(beta2, steps).sqrt()
        rate = given["learning_rate"] * root / _one_minus_power(beta1, steps)
        epsilon, kept = given["epsilon"] * root, 1 - given["learning_rate"] * given["weight_decay"]
        following, moments = {}, {}
        for name, parameter in parameters.items():
            gradient = gradients[name]
            first = gradient + beta1 * (given[f"{name}.first_moment"] - gradient)
            squared = gradient * gradient
            second = squared + beta2 * (given[f"{name}.second_moment"] - squared)
            moments[f"{name}.first_moment"], moments[f"{name}.second_moment"] = first, second
            following[name] = parameter * kept - rate * (first / (second.sqrt() + epsilon))
        return {**following, **moments, "steps": steps}


def _one_minus_power(beta: Tensor, steps: Tensor) -> Tensor:
    """1 - beta ** steps, without the cancellation that costs float32 four digits at a beta of 0.999."""
    half = torch.tanh(torch.log(beta) * steps * 0.5)  # 1 - exp(2 a) = -2 tanh(a) / (1 - tanh(a))
    return cast(Tensor, -2 * half / (1 - half))
