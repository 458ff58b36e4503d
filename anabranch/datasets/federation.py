"""A data set as a federation sees it: what each device has, and what is held out for measuring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Examples(NamedTuple):
    """Examples side by side: `x` of shape (n, *one), `y` of shape (n, *one)."""

    x: NDArray[Any]
    y: NDArray[Any]

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> Self:
        """All parts, in order."""
        return cls(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))

    @property
    def none(self) -> "Examples":
        """No examples, of this shape."""
        return Examples(self.x[:0], self.y[:0])


@dataclass(frozen=True)
class Client:
    """Whose data belongs together: a person, a machine, a station, a hospital. One device each; `name` is an `Id`.

    `validation` is the device's own held-out part, `test` what it is judged by at the end; both may be empty.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Federation:
    """A data set, split by client or in time.

    `validation` is what a gateway may look at while it trains, `test` what nobody may look at before the end.
    `labels` names the classes of `y`; empty where `y` is a number to predict. `validators` are clients whose training
    data is the validation: who measures on the test set and chooses nothing may let them train as well.
    """

    name: str
    licence: str
    labels: tuple[str, ...]
    clients: tuple[Client, ...]
    validation: Examples
    test: Examples
    validators: tuple[Client, ...] = ()

    @property
    def train(self) -> Examples:
        """What all clients train on, pooled in their order: a copy."""
        return Examples.concatenate([client.train for client in self.clients])

    @property
    def everyone(self) -> tuple[Client, ...]:
        """Clients and validators, in the order of their names (`person-3` before `person-11`)."""
        together = (*self.clients, *self.validators)
        return tuple(sorted(together, key=lambda c: (len(c.name), c.name))) if self.validators else together


def pooled(name: str, licence: str, labels: tuple[str, ...], clients: Sequence[Client]) -> Federation:
    """A federation that measures on what its clients hold out, pooled."""
    return Federation(
        name=name,
        licence=licence,
        labels=labels,
        clients=tuple(clients),
        validation=Examples.concatenate([client.validation for client in clients]),
        test=Examples.concatenate([client.test for client in clients]),
    )


def stratified(y: NDArray[np.int64], shares: Sequence[float], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Rows for each share, in order, drawn so that every class of `y` is split alike (to within one example).

    Each class is cut at the rounded sums of `shares`, which add up to 1; together the rows are 0 .. len(y) - 1, once.
    """
    parts: list[list[NDArray[np.intp]]] = [[] for _ in shares]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]
