"""UCI HAR: 30 people with a phone at the waist, six activities, as windows of raw signals. Numpy only.

Anguita et al., ESANN 2013. The data does not ship with this repository: UCI lists it as CC BY 4.0, its own README
rules commercial use out. It is read from `uci_har.npz` in the folder $ANABRANCH_DATASETS, by default
`../shared/datasets`. Windows of 2.56 s at 50 Hz overlap by half, so the split is by people: the nine of the official
test set test, three of the other 21 validate, and 18 train, one device each.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError

LICENCE = "UCI HAR (Anguita et al., ESANN 2013): no commercial use of the data"
CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
CHANNELS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
WINDOW = 128  # samples: 2.56 s at 50 Hz
PEOPLE = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 25, 26, 27, 29)  # they train, one device each
VALIDATORS = (23, 28, 30)
TESTERS = (2, 4, 9, 10, 12, 13, 18, 20, 24)  # the official test set

ARCHIVE = "uci_har.npz"
DATASETS = "ANABRANCH_DATASETS"
_DEFAULT_FOLDER = "../shared/datasets"

Windows = NDArray[np.float32]  # (n, WINDOW, 9): accelerations in g, angular velocities in rad/s
Labels = NDArray[np.int64]  # (n,)
Examples = tuple[Windows, Labels]


def load_person(subject: int) -> Examples:
    """What one person's device has: one who trains, or validates. Raises `ConfigError` for others, or without data."""
    known = sorted((*PEOPLE, *VALIDATORS))
    if subject not in known:
        raise ConfigError(f"person {subject} does not train", f"people: {', '.join(map(str, known))}")
    return _of((subject,))


def load_training() -> Examples:
    """All training people, pooled. Raises `ConfigError` without the data."""
    return _of(PEOPLE)


def load_validation() -> Examples:
    """What a gateway may look at while it trains. Raises `ConfigError` without the data."""
    return _of(VALIDATORS)


def load_test() -> Examples:
    """What nobody may look at before the end. Raises `ConfigError` without the data."""
    return _of(TESTERS)


def _of(people: tuple[int, ...]) -> Examples:
    x, y, subject = _archive(Path(os.environ.get(DATASETS) or _DEFAULT_FOLDER) / ARCHIVE)
    chosen = np.isin(subject, people)
    return x[chosen], y[chosen]


@cache
def _archive(path: Path) -> tuple[Windows, Labels, NDArray[np.int64]]:
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}",
            f"set ${DATASETS} to the folder with {ARCHIVE}; its licence keeps UCI HAR out of this repository",
        )
    with np.load(path) as data:
        x = np.ascontiguousarray(data["x"].transpose(0, 2, 1), np.float32)  # (n, 9, WINDOW) -> (n, WINDOW, 9)
        return x, data["y"].astype(np.int64), data["subject"].astype(np.int64)
