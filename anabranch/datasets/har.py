"""UCI HAR: 30 people with a phone at the waist, six activities, as windows of raw signals. Numpy only.

Anguita et al., ESANN 2013. The data does not ship with this repository: UCI lists it as CC BY 4.0, its own README
rules commercial use out. `python -m models data har` fetches it. Windows of 2.56 s at 50 Hz overlap by half, so the
split is by people: the nine of the official test set test, three of the other 21 validate, and 18 train, one device
each.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation
from anabranch.datasets.source import Origin, Source, dataset_file, npz
from fl_protocol.errors import ConfigError

LICENCE = "UCI HAR (Anguita et al., ESANN 2013): no commercial use of the data"
CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
CHANNELS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
WINDOW = 128  # samples: 2.56 s at 50 Hz
PEOPLE = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 25, 26, 27, 29)  # they train, one device each
VALIDATORS = (23, 28, 30)
TESTERS = (2, 4, 9, 10, 12, 13, 18, 20, 24)  # the official test set

ARCHIVE = "uci_har.npz"
_ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")  # 1 to 6 there

Windows = NDArray[np.float32]  # (n, WINDOW, 9): accelerations in g, angular velocities in rad/s
Labels = NDArray[np.int64]  # (n,)


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


def load() -> Federation:
    """18 people, three validators, nine to test. Raises `ConfigError` without the data."""
    return Federation(
        name="har",
        licence=LICENCE,
        labels=CLASSES,
        clients=tuple(map(_client, PEOPLE)),
        validation=load_validation(),
        test=load_test(),
        validators=tuple(map(_client, VALIDATORS)),
    )


def _client(person: int) -> Client:
    windows = _of((person,))
    return Client(f"person-{person}", windows, windows.none, windows.none)


def _of(people: tuple[int, ...]) -> Examples:
    x, y, subject = _archive(dataset_file("har", ARCHIVE))
    chosen = np.isin(subject, people)
    return Examples(x[chosen], y[chosen])


def convert(origin: Origin) -> dict[str, bytes]:
    """The text files of UCI's archive (an archive in an archive) as arrays, the training people's first.

    `x` float32 (n, 9, WINDOW), `y` 0..5, `subject` 1..30, `is_test`, and the names of channels and classes.
    """
    parts = []
    for part in ("train", "test"):
        signals = [_numbers(origin, f"{part}/Inertial Signals/{name}_{part}.txt") for name in CHANNELS]
        x = np.stack(signals, axis=1).astype(np.float32)
        y, subject = (_numbers(origin, f"{part}/{name}_{part}.txt")[:, 0].astype(np.int64) for name in ("y", "subject"))
        if not (x.shape[1:] == (len(CHANNELS), WINDOW) and len(x) == len(y) == len(subject)):
            raise ConfigError(
                f"the {part} files of UCI HAR do not fit together", "take the archive of UCI data set 240"
            )
        parts.append((x, y - 1, subject, np.full(len(x), part == "test")))
    x, y, subject, is_test = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = {"channels": np.array(CHANNELS), "classes": np.array(_ACTIVITIES)}
    return {ARCHIVE: npz(x=x, y=y, subject=subject, is_test=is_test, **names)}


def _numbers(origin: Origin, pattern: str) -> NDArray[np.float64]:
    return np.loadtxt(io.BytesIO(origin.read(pattern)), dtype=np.float64, ndmin=2)


SOURCE = Source(
    urls=("https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",),
    max_bytes=100_000_000,
    files={ARCHIVE: "aef27afa599325d4347191cb32280f3ecbe889849b0aee7542d168eac15dd7bf"},
    convert=convert,
)


@cache
def _archive(path: Path) -> tuple[Windows, Labels, NDArray[np.int64]]:
    with np.load(path) as data:
        x = np.ascontiguousarray(data["x"].transpose(0, 2, 1), np.float32)  # (n, 9, WINDOW) -> (n, WINDOW, 9)
        return x, data["y"].astype(np.int64), data["subject"].astype(np.int64)
