# mypy: allow-subclassing-any
"""The whole model on one page: matrix factorisation, in which a person is a linear layer over films' factors."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the model, and the mean of all training ratings."""

    films: int = 300
    factors: int = 4
    spread: float = 0.3  # of the films' first factors
    mean: float = 3.45  # stars


class Recommender(nn.Module):
    """Films' numbers, (B, 1) -> stars that this device's person would give, (B, 1).

    stars = mean + quality of the film + kindness of the person + the film's factors times the person's (Koren, Bell and
    Volinsky, 2009). The person's kindness and factors are bias and weight of the layer `person`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.factors = nn.Embedding(c.films, c.factors)
        self.quality = nn.Embedding(c.films, 1)
        self.person = nn.Linear(c.factors, 1)
        nn.init.normal_(self.factors.weight, std=c.spread)
        nn.init.zeros_(self.quality.weight)
        nn.init.zeros_(self.person.weight)  # nobody yet
        nn.init.zeros_(self.person.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Stars for films."""
        film = x.squeeze(1)  # (B,)
        stars: Tensor = self.config.mean + self.quality(film) + self.person(self.factors(film))
        return stars  # (B, 1)
