"""AI4I 2020: does a milling machine fail? 10,000 cuts, 339 failures. Numpy only.

Matzka, "Explainable Artificial Intelligence for Predictive Maintenance Applications", AI4I 2020,
doi 10.24432/C5HS5C; CC BY 4.0; ships with Anabranch. The data is synthetic: its author's rules made the failures. The
five columns that tell which rule it was are not features: they give the answer away.

Three variants of a product are three kinds of machine; each is dealt to ten machines, one client each. Of every machine
60/20/20 train, validate and test, failures and the rest alike.
"""

import csv
import io
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation, pooled, stratified
from anabranch.datasets.source import Origin, Source, npz
from fl_protocol.errors import ConfigError

LICENCE = "CC-BY-4.0 (data: AI4I 2020, doi 10.24432/C5HS5C)"
CLASSES = ("works", "fails")
VARIANTS = ("L", "M", "H")
MACHINES = 10  # of each variant
FEATURES = ("air temperature K", "process temperature K", "speed rpm", "torque Nm", "tool wear min")
COLUMNS = (*FEATURES, *(f"variant {v}" for v in VARIANTS))  # of x
SHARES = (0.6, 0.2, 0.2)  # train, validation, test
_THEIRS = (
    "Type", "Air temperature [K]", "Process temperature [K]", "Rotational speed [rpm]", "Torque [Nm]",
    "Tool wear [min]", "Machine failure",
)  # fmt: skip


def load() -> Federation:
    """30 machines; `x` float32 (n, 8) as `COLUMNS`, `y` 1 where the machine fails."""
    x, y, variant = _cuts()
    clients = []
    for number, name in enumerate(VARIANTS):
        rng = np.random.default_rng([601, number])
        of_variant = np.flatnonzero(variant == number)
        # First by split, then by machine: so the few failures are shared out evenly both ways.
        parts = [of_variant[rows] for rows in stratified(y[of_variant], SHARES, rng)]
        dealt = [[part[rows] for rows in _deal(y[part], MACHINES, rng)] for part in parts]
        for machine, splits in enumerate(zip(*dealt, strict=True)):
            clients.append(Client(f"machine-{name.lower()}{machine}", *(Examples(x[rows], y[rows]) for rows in splits)))
    return pooled("ai4i", LICENCE, CLASSES, clients)


def _deal(y: NDArray[np.int64], hands: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Rows for each hand: shuffled, sorted by class, and dealt like cards."""
    shuffled = rng.permutation(len(y))
    deck = shuffled[np.argsort(y[shuffled], kind="stable")]
    return [np.sort(deck[hand::hands]) for hand in range(hands)]


@cache
def _cuts() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int8]]:
    with (files("anabranch") / "data" / "ai4i2020.npz").open("rb") as file, np.load(file) as data:
        variant = data["variant"]
        one_hot = variant[:, None] == np.arange(len(VARIANTS))
        x = np.concatenate([data["values"], one_hot], axis=1).astype(np.float32)
        return x, data["failure"].astype(np.int64), variant


def convert(origin: Origin) -> dict[str, bytes]:
    """UCI's table `ai4i2020.csv` as arrays, in its order: `values` as `FEATURES`, `variant` of `VARIANTS`, `failure`.

    Copies go about whose heads have `_` for a space: they are the same.
    """
    rows = csv.reader(io.StringIO(origin.read("ai4i2020.csv").decode("utf-8-sig")))
    head = [name.replace("_", " ") for name in next(rows, [])]
    if missing := set(_THEIRS) - set(head):
        raise ConfigError(f"ai4i2020.csv has no column {sorted(missing)[0]}", "take the file of UCI data set 601")
    table = [[row[head.index(name)] for name in _THEIRS] for row in rows]
    values = np.array([row[1:-1] for row in table], np.float64).astype(np.float32)
    variant = np.array([VARIANTS.index(row[0]) for row in table], np.int8)
    failure = np.array([int(row[-1]) for row in table], np.int8)
    return {_FILE: npz(values=values, variant=variant, failure=failure)}


_FILE = "ai4i2020/ai4i2020.npz"
SOURCE = Source(
    urls=("https://archive.ics.uci.edu/static/public/601/ai4i+2020+predictive+maintenance+dataset.zip",),
    max_bytes=5_000_000,
    files={_FILE: "b62c8d20fd56c6115724ed86ce2d718f46910ca9edb8457c06999c51011d69de"},
    convert=convert,
)
