"""What an update is worth by its age."""

from dataclasses import dataclass
from typing import Literal


def staleness_discount(staleness: int, exponent: float) -> float:
    """s(tau) = (1 + tau)^-p, the polynomial discount of FedAsync (Xie 2019) and FedBuff (Nguyen 2022)."""
    return float((1.0 + staleness) ** -exponent)


@dataclass(frozen=True)
class Discount:
    """s(tau) of FedAsync (Xie et al., arXiv:1903.03934): constant, hinge or polynomial.

    hinge: 1 up to `after` versions, then 1 / (slope (tau - after) + 1). polynomial: (1 + tau)^-p, where p goes
    in a straight line from `exponent` to `end` over the first `anneal` versions: staleness weights speed the start and
    cost accuracy on slow devices' classes.
    """

    kind: Literal["polynomial", "hinge", "constant"] = "polynomial"
    exponent: float = 0.5
    end: float | None = None
    anneal: int = 0
    after: int = 6
    slope: float = 10.0

    def __call__(self, staleness: int, version: int = 0) -> float:
        """The factor in 0..1 of an update of that age, in the `version`-th version of a model's life."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "hinge":
            return 1.0 if staleness <= self.after else 1.0 / (self.slope * (staleness - self.after) + 1.0)
        exponent = self.exponent
        if self.end is not None:
            done = min(1.0, version / self.anneal) if self.anneal else 1.0
            exponent += (self.end - self.exponent) * done
        return staleness_discount(staleness, exponent)
