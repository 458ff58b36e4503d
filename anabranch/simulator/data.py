"""What the devices of an experiment have to learn from, and what their gateway measures with."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch import datasets
from anabranch.datasets import LOADERS
from anabranch.simulator.experiment import DataSection, Experiment
from edge_agent.sources import Dataset, Examples
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError, ProtocolError

SHIPPED = files("anabranch") / "data"


@dataclass(frozen=True)
class Shares:
    """Each device's name and examples, in order; and the held-out set, None where the learning knows by itself."""

    devices: tuple[tuple[str, Dataset], ...]
    held_out: Examples | None


def read_bundle(experiment: Experiment) -> tuple[bytes, Bundle]:
    """The experiment's bundle: its bytes, and verified. Raises `ConfigError`."""
    return _read(experiment.bundle)


@cache
def _read(named: str) -> tuple[bytes, Bundle]:
    try:
        data = Path(named).read_bytes() if named.endswith(".bundle") else (SHIPPED / f"{named}.bundle").read_bytes()
        return data, Bundle.read(data)
    except OSError:
        shipped = sorted(f.name.removesuffix(".bundle") for f in SHIPPED.iterdir() if f.name.endswith(".bundle"))
        raise ConfigError(f"there is no bundle {named}", f"give a path, or one of: {', '.join(shipped)}") from None
    except ProtocolError as error:
        raise ConfigError(f"{named} is not a sound bundle: {error}", "build it again") from None


def load_shares(experiment: Experiment, bundle: Bundle, seed: int) -> Shares:
    """What the experiment's devices have, with this seed. Raises `ConfigError`."""
    data, wanted = experiment.data, experiment.fleet.devices
    if data.source == "stand-in":
        return _stand_in(data, wanted, bundle, seed)
    names, clients, held_out = _clients(data)
    shape = held_out.x.shape[1:]
    if shape != bundle.x_shape:
        raise ConfigError(
            f"an example of {data.source} has shape {shape}, one of bundle {bundle.name} {bundle.x_shape}",
            "name the bundle that belongs to the data",
        )
    if data.split == "client":
        if wanted > len(clients):
            raise ConfigError(
                f"fleet.devices = {wanted}, but {data.source} has {len(clients)} clients",
                "take fewer devices, or split by dirichlet",
            )
        chosen = [round(i) for i in np.linspace(0, len(clients) - 1, wanted)]
        shares = [(names[i], *clients[i]) for i in chosen]
    else:
        whole = Examples.concatenate([train for train, _ in clients])
        if whole.y.dtype.kind == "f":
            raise ConfigError(
                f"data.split = 'dirichlet', but {data.source} has numbers to predict, no classes to spread",
                "data.split = 'client'",
            )
        empty = whole[:0]
        parts = dirichlet(whole.y, wanted, data.alpha, np.random.default_rng([seed, 3]))
        shares = [(device_name(i, wanted), whole[rows], empty) for i, rows in enumerate(parts)]
    devices = tuple((name, Dataset(train, own, train.x[-1:])) for name, train, own in shares)
    return Shares(devices, held_out)


def device_name(number: int, of: int) -> str:
    """The device of that number, in a name that sorts."""
    return f"device-{number:0{len(str(of - 1))}d}"


def dirichlet(y: NDArray[Any], parts: int, alpha: float, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Rows for each of `parts` devices: every class is spread by a draw of Dirichlet(alpha). Each gets one at least.

    Hsu, Qi and Brown, arXiv:1909.06335. Raises `ConfigError` where there are fewer examples than devices.
    """
    if len(y) < parts:
        raise ConfigError(f"{len(y)} examples for {parts} devices", "take fewer devices")
    pieces: list[list[NDArray[np.intp]]] = [[] for _ in range(parts)]
    for label in np.unique(y):
        of_class = rng.permutation(np.flatnonzero(y == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(of_class)).astype(np.intp)
        for part, piece in zip(pieces, np.split(of_class, cuts), strict=True):
            part.append(piece)
    joined: list[NDArray[np.intp]] = [np.sort(np.concatenate(part)) for part in pieces]
    for i in range(parts):
        if not len(joined[i]):  # from whoever has most
            richest = max(range(parts), key=lambda j: len(joined[j]))
            joined[i], joined[richest] = joined[richest][-1:], joined[richest][:-1]
    return joined


def _stand_in(data: DataSection, devices: int, bundle: Bundle, seed: int) -> Shares:
    """Examples that nobody reads: only their number counts."""
    low, high = data.examples
    if low > high:
        raise ConfigError(f"data.examples = [{low}, {high}]", "give the smaller number first")
    x = np.zeros((high, *bundle.x_shape), bundle.x_dtype)
    y = np.zeros((high, *bundle.y_shape), bundle.y_dtype)
    counts = np.random.default_rng([seed, 5]).integers(low, high + 1, devices)
    names = [device_name(i, devices) for i in range(devices)]
    whole = Examples(x, y)
    return Shares(
        tuple((n, Dataset(whole[: int(c)], whole[:0], x[:1])) for n, c in zip(names, counts, strict=True)), None
    )


_Clients = tuple[Sequence[str], Sequence[tuple[Examples, Examples]], Examples]


def _clients(data: DataSection) -> _Clients:
    """Names, (to train on, the device's own held-out) of each client, and what the gateway measures with."""
    if data.source.endswith(".npz"):
        return _from_npz(data, Path(data.source))
    if data.source not in LOADERS:
        known = ", ".join(LOADERS)
        raise ConfigError(f"data.source = {data.source!r}", f"stand-in, the path of an .npz, or one of: {known}")
    federation = datasets.load(data.source)
    test = data.measured_on == "test"
    # Who measures on the test set needs no validators: then they train too.
    chosen = federation.everyone if test else federation.clients
    held_out = federation.test if test else federation.validation
    clients = [(Examples(*client.train), Examples(*client.validation)) for client in chosen]
    return [client.name for client in chosen], clients, Examples(*held_out)


def _from_npz(data: DataSection, path: Path) -> _Clients:
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y, client, test = (np.asarray(file[name]) for name in (data.x, data.y, data.client, data.test))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", f"an .npz with {data.x}, {data.y}, {data.client} and {data.test}"
        ) from None
    if not len(x) == len(y) == len(client) == len(test):
        raise ConfigError(f"{path}: its arrays have different lengths", "one row an example in each")
    held_out = test.astype(bool)
    ids = np.unique(client[~held_out])
    everyone = [Examples(x[rows], y[rows]) for rows in (~held_out & (client == i) for i in ids)]
    names = [f"client-{str(i).lower()}"[:64] for i in ids.tolist()]
    return names, [(e, e[:0]) for e in everyone], Examples(x[held_out], y[held_out])
