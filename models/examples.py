"""An author's examples: read from an .npz file, and held against the spec."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError
from models.spec import Examples, Input, ModelSpec, Splits

_SHARES = (0.8, 0.1)  # of each client's examples, in order, that train and that validate; the last ones test
_NAMES = Splits._fields


def from_npz(path: str | Path) -> Splits:
    """Splits from the arrays `x` and `y` of an .npz file, with one row an example.

    With an array `split` of the words train, validation and test, one an example, those are the splits. Without it,
    the first 80 % of the examples train, the next 10 % validate and the last 10 % test: in time, if the file is in
    time; with an array `client`, client by client; with an array `test` of true and false, as the twin's files have
    it, that is the test and the others are divided. Never shuffled: neighbouring windows are nearly the same, and one
    in training would give the other away. Raises `ConfigError`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no {path}", "give the path of an .npz file, from the folder you run this in")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in ("x", "y", "split", "client", "test") if name in data}
    except (ValueError, OSError) as error:  # an object array, or no .npz at all
        raise ConfigError(f"{path} does not read: {error}", "np.savez(path, x=x, y=y) writes such a file") from error
    for name in ("x", "y"):
        if name not in arrays:
            raise ConfigError(f"{path} has no array {name!r}", "np.savez(path, x=x, y=y) writes such a file")
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(arrays["x"]):
            raise ConfigError(
                f"{path}: {name} has shape {array.shape}, x has {arrays['x'].shape}", "one row an example"
            )
    if "split" in arrays:
        chosen = _by_word(path, arrays["split"])
    else:
        same = np.zeros(len(arrays["x"]), np.int64)
        chosen = _in_order(arrays.get("client", same), arrays.get("test"))
    parts = [_typed(arrays["x"][rows], arrays["y"][rows]) for rows in chosen]
    for name, (x, _) in zip(_NAMES, parts, strict=True):
        if not len(x):
            raise ConfigError(f"{path}: no example is for {name}", f"split has the words {', '.join(_NAMES)}")
    return Splits(*parts)


def check_examples(spec: ModelSpec, splits: Splits) -> None:
    """Raises `ConfigError` for examples that are not what the spec says of x, y and labels."""
    if not isinstance(splits, tuple) or len(splits) != len(_NAMES):
        raise ConfigError(f"{spec.name}: examples() gives no Splits", "return Splits(train, validation, test)")
    for split, (x, y) in zip(_NAMES, splits, strict=True):
        _check(f"{spec.name}: examples().{split}: x", x, spec.x)
        _check(f"{spec.name}: examples().{split}: y", y, spec.y)
        if len(x) != len(y) or not len(x):
            raise ConfigError(f"{spec.name}: examples().{split} has {len(x)} x and {len(y)} y", "as many, and not none")
        if spec.labels and y.dtype == np.int64 and (y.min() < 0 or y.max() >= len(spec.labels)):
            raise ConfigError(
                f"{spec.name}: examples().{split} has classes {y.min()}..{y.max()} for {len(spec.labels)} labels",
                "class numbers start at 0, one label each",
            )


def _check(what: str, array: NDArray[Any], expected: Input) -> None:
    dtype = {torch.float32: "float32", torch.int64: "int64"}[expected.dtype]
    if not isinstance(array, np.ndarray) or array.dtype.name != dtype or array.shape[1:] != expected.shape:
        found = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        wanted = ", ".join(["n", *map(str, expected.shape)])
        raise ConfigError(f"{what} is {found}", f"the spec says {dtype} ({wanted}): change one of them")
    if dtype == "float32" and not np.isfinite(array).all():
        raise ConfigError(
            f"{what} has values that are not finite", "fill what is missing, say with 0 and a flag beside it"
        )


def _typed(x: NDArray[Any], y: NDArray[Any]) -> Examples:
    """Whole numbers as int64, all others as float32."""
    return tuple(a.astype(np.int64 if a.dtype.kind in "iub" else np.float32) for a in (x, y))  # type: ignore[return-value]


def _by_word(path: Path, words: NDArray[Any]) -> list[NDArray[Any]]:
    if unknown := sorted(set(words.tolist()) - set(_NAMES)):
        raise ConfigError(f"{path}: split has the word {unknown[0]!r}", f"its words are {', '.join(_NAMES)}")
    return [np.flatnonzero(words == name) for name in _NAMES]


def _in_order(clients: NDArray[Any], test: NDArray[Any] | None) -> list[NDArray[Any]]:
    held_out = np.zeros(len(clients), bool) if test is None else test.astype(bool)
    # Where the file says what tests, those who train and who validate divide all the rest in their proportion.
    shares = np.cumsum(_SHARES) / (1 if test is None else sum(_SHARES))
    parts: list[list[NDArray[Any]]] = [[], [], [np.flatnonzero(held_out)]]
    for name in np.unique(clients):
        rows = np.flatnonzero((clients == name) & ~held_out)
        borders = np.round(shares * len(rows)).astype(int)
        for part, chosen in zip(parts, np.split(rows, borders), strict=True):
            part.append(chosen)
    return [np.concatenate(part) for part in parts]
