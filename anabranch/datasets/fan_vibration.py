"""Cooler-fan vibration: 17 fans, one at each speed, as windows of raw acceleration. Numpy only.

UCI Accelerometer (Scalabrini Sampaio et al., Sensors 2019, doi 10.3390/s19194342), CC BY 4.0; ships with Anabranch,
see data/ATTRIBUTION.md. 51 recordings of one minute at 50 Hz: each of 17 speeds with each of three weight distributions
on the blades. Split in time: of every recording the first 40 s train, 40-45 s validate, the last 15 s test; no window
crosses a border.

As `fan_anomaly` the same windows are a task without labels: devices learn what a balanced fan is like.
"""

import csv
import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation, pooled
from anabranch.datasets.source import Origin, Source, npz
from fl_protocol.errors import ConfigError

LICENCE = "CC-BY-4.0 (data: UCI Accelerometer, doi 10.3390/s19194342)"
SPEEDS = tuple(range(20, 105, 5))  # percent of full speed; one device each
CLASSES = ("normal", "perpendicular weights", "opposite weights")
RATE_HZ = 50
WINDOW = 4 * RATE_HZ
TRAIN_STRIDE = 10  # windows overlap: 0.2 s apart in training
TEST_STRIDE = RATE_HZ // 2
_BORDERS_S = {"train": (0, 40), "validation": (40, 45), "test": (45, 60)}

Windows = NDArray[np.float32]  # (n, WINDOW, 3), in g
Labels = NDArray[np.int64]  # (n,)


class Splits(NamedTuple):
    """Examples of one or more fans: (x, y) each."""

    train: tuple[Windows, Labels]
    validation: tuple[Windows, Labels]
    test: tuple[Windows, Labels]


def load_fan(speed: int) -> Splits:
    """Examples of the fan at `speed` percent. Raises `ConfigError` for a speed that was not recorded."""
    if speed not in SPEEDS:
        raise ConfigError(f"no fan was recorded at {speed} %", f"speeds: {', '.join(map(str, SPEEDS))}")
    xyz, config, speeds = _recordings()
    parts = []
    for split, (start, end) in _BORDERS_S.items():
        stride = TRAIN_STRIDE if split == "train" else TEST_STRIDE
        x, y = [], []
        for label in range(len(CLASSES)):
            recording = xyz[(speeds == speed) & (config == label + 1)][start * RATE_HZ : end * RATE_HZ]
            windows = np.lib.stride_tricks.sliding_window_view(recording, WINDOW, axis=0)[::stride]
            x.append(windows.transpose(0, 2, 1))  # (n, 3, WINDOW) -> (n, WINDOW, 3)
            y.append(np.full(len(windows), label, np.int64))
        parts.append((np.ascontiguousarray(np.concatenate(x)), np.concatenate(y)))
    return Splits(*parts)


def load_all(speeds: Sequence[int] = SPEEDS) -> Splits:
    """Examples of several fans, pooled."""
    fans = [load_fan(speed) for speed in speeds]
    x_and_y = [
        (np.concatenate(x), np.concatenate(y))
        for x, y in (zip(*split, strict=True) for split in zip(*fans, strict=True))
    ]
    return Splits(*x_and_y)


def write_training_folder(speed: int, folder: Path) -> None:
    """Write what one device has: `fan-SPEED.npz` to train on, `validation-fan-SPEED.npz` for its own report."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = load_fan(speed)
    for name, (x, y) in ((f"fan-{speed}.npz", splits.train), (f"validation-fan-{speed}.npz", splits.validation)):
        np.savez(folder / name, x=x, y=y)


def load() -> Federation:
    """17 fans, each with 40 s of each class; 5 s later validate, the last 15 s test."""
    return pooled("fan_vibration", LICENCE, CLASSES, [_client(speed, load_fan(speed)) for speed in SPEEDS])


def load_anomaly() -> Federation:
    """17 fans in balance, to train and to validate; the test set has all classes, of which 1 and 2 are anomalies."""
    clients = []
    for speed in SPEEDS:
        fan = load_fan(speed)
        train, validation = ((x[y == 0], y[y == 0]) for x, y in (fan.train, fan.validation))
        balanced = Splits(train, validation, fan.test)
        clients.append(_client(speed, balanced))
    return pooled("fan_anomaly", LICENCE, CLASSES, clients)


def _client(speed: int, fan: Splits) -> Client:
    return Client(f"fan-{speed}", Examples(*fan.train), Examples(*fan.validation), Examples(*fan.test))


def convert(origin: Origin) -> dict[str, bytes]:
    """UCI's table `accelerometer.csv` (weight configuration, speed in percent, x, y, z) as arrays, in its order."""
    rows = csv.reader(io.StringIO(origin.read("accelerometer*.csv").decode("utf-8-sig")))
    header = next(rows, [])
    if header != ["wconfid", "pctid", "x", "y", "z"]:
        raise ConfigError(f"accelerometer.csv begins with {header!r:.80}", "take the file of UCI data set 846")
    table = np.array(list(rows), np.float64).reshape(-1, 5)
    xyz, config, speed = table[:, 2:].astype(np.float32), table[:, 0].astype(np.int8), table[:, 1].astype(np.int16)
    return {_FILE: npz(xyz=xyz, config=config, speed_pct=speed)}


_FILE = "fan_vibration/fan_vibration.npz"
SOURCE = Source(
    urls=("https://archive.ics.uci.edu/static/public/846/accelerometer.zip",),
    max_bytes=20_000_000,
    files={_FILE: "52553366cac7afa651e9ea0b3e0bcbb219d31de28877f1d4db6645b721f65c79"},
    convert=convert,
)


@cache
def _recordings() -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int16]]:
    with (files("anabranch") / "data" / "fan_vibration.npz").open("rb") as file, np.load(file) as data:
        return data["xyz"], data["config"], data["speed_pct"]
