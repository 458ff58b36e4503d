"""Data sets in the formats in which they are published: made up where their licence or size keeps the real ones away.

What ships with Anabranch is written back into its published format, so that the conversion must give the shipped bytes.
"""

import gzip
import io
import zipfile
from datetime import datetime, timedelta
from importlib.resources import files

import numpy as np

from anabranch.datasets import SOURCES, beijing_air, har
from anabranch.datasets.source import digest

SHIPPED = files("anabranch") / "data"
# Ends of the three parts, each an unbroken run of hours: the real set has four years of them.
RUNS = (datetime(2015, 12, 20), 288), (datetime(2016, 1, 1), 180), (datetime(2016, 7, 1), 180)  # noqa: DTZ001


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return file.getvalue()


def accelerometer() -> dict[str, bytes]:
    with np.load(SHIPPED / "fan_vibration.npz") as data:
        rows = zip(data["config"], data["speed_pct"], *data["xyz"].T, strict=True)
        lines = [f"{c},{s},{x},{y},{z}" for c, s, x, y, z in rows]
    return {"accelerometer.csv": "\n".join(["wconfid,pctid,x,y,z", *lines, ""]).encode()}


def ai4i() -> dict[str, bytes]:
    head = (
        "UDI,Product ID,Type,Air temperature [K],Process temperature [K],Rotational speed [rpm],Torque [Nm],"
        "Tool wear [min],Machine failure,TWF,HDF,PWF,OSF,RNF"
    )
    with np.load(SHIPPED / "ai4i2020.npz") as data:
        lines = [
            f"{i},{'LMH'[v]}{i},{'LMH'[v]},{','.join(map(str, values))},{failure},1,0,1,0,1"
            for i, (values, v, failure) in enumerate(zip(data["values"], data["variant"], data["failure"], strict=True))
        ]
    return {"ai4i2020.csv": b"\xef\xbb\xbf" + "\r\n".join([head, *lines, ""]).encode()}


def heart() -> dict[str, bytes]:
    hospitals = {path.name: path.read_bytes() for path in (SHIPPED / "heart_disease").iterdir()}
    return {**hospitals, "reprocessed.hungarian.data": b"another file", "heart-disease.names": b"about it"}


def uci_har() -> dict[str, bytes]:
    """Thirty people, two windows of each activity; the archive is in another."""
    rng, inner = np.random.default_rng(0), {}
    for part, people in (("train", sorted({*har.PEOPLE, *har.VALIDATORS})), ("test", har.TESTERS)):
        subject, y = np.repeat(people, 12), np.tile(np.repeat(np.arange(1, 7), 2), len(people))
        for name in har.CHANNELS:
            rows = rng.normal(0, 0.5, (len(y), har.WINDOW))
            text = "\n".join(" ".join(f"{value: .7e}" for value in row) for row in rows)
            inner[f"UCI HAR Dataset/{part}/Inertial Signals/{name}_{part}.txt"] = text.encode()
        for name, column in (("y", y), ("subject", subject)):
            inner[f"UCI HAR Dataset/{part}/{name}_{part}.txt"] = "\n".join(map(str, column)).encode()
    return {"UCI HAR Dataset.zip": zipped(inner), "UCI HAR Dataset.names": b"about it"}


def beijing() -> dict[str, bytes]:
    """Twelve stations; the pressure counts the hours, so that a window tells where it was cut. Some readings are NA."""
    rng, inner = np.random.default_rng(0), {}
    times = [start + timedelta(hours=h) for start, hours in RUNS for h in range(hours)]
    for station in beijing_air._STATIONS:
        lines = ['"No","year","month","day","hour",' + ",".join(f'"{c}"' for c in READINGS) + ',"station"']
        for number, time in enumerate(times):
            readings = {name: f"{value:.1f}" for name, value in zip(READINGS, rng.uniform(1, 99, 12), strict=True)}
            readings |= {name: "NA" for name in READINGS if rng.random() < 0.05}
            readings |= {"PRES": str(number), "wd": rng.choice(['"NNW"', '"E"', "NA"])}
            cells = [number + 1, time.year, time.month, time.day, time.hour, *readings.values(), f'"{station}"']
            lines.append(",".join(map(str, cells)))
        path = f"PRSA_Data_20130301-20170228/PRSA_Data_{station}_20130301-20170228.csv"
        inner[path] = "\n".join([*lines, ""]).encode()
    return {"PRSA2017_Data_20130301-20170228.zip": zipped(inner), "data.csv": b"", "test.csv": b""}


READINGS = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "wd", "WSPM")  # in their order


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes(), 1, mtime=0)


def fashion() -> dict[str, bytes]:
    """Pictures whose first pixel, times 256 plus the second, is their number."""
    members = {}
    for part, count in (("train", 5100), ("t10k", 60)):
        x = np.zeros((count, 28, 28), np.uint8)
        x[:, 0, 0], x[:, 0, 1] = np.divmod(np.arange(count), 256)
        members[f"{part}-images-idx3-ubyte.gz"] = idx(x)
        members[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    return members


PUBLISHED = {
    "ai4i": ai4i,
    "beijing_air": beijing,
    "fan_vibration": accelerometer,
    "fashion_mnist": fashion,
    "har": uci_har,
    "heart_disease": heart,
}
AS_SHIPPED = ("ai4i", "fan_vibration", "heart_disease")  # what is made here has the pinned SHA-256


class Members:
    """An origin of the simplest kind: files by their last part."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self.members = {}
        for path, data in members.items():
            inner = {}
            if path.endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    inner = {p: archive.read(p) for p in archive.namelist()}
            self.members |= inner or {path: data}

    def read(self, pattern: str) -> bytes:
        begin, _, end = pattern.rpartition("/")[2].partition("*")
        names = {path.rpartition("/")[2]: data for path, data in self.members.items()}
        (found,) = [name for name in names if name.startswith(begin) and name.endswith(end)]
        return names[found]


def write_datasets(folder) -> None:
    """All that loaders read, from what is published here."""
    for name, published in PUBLISHED.items():
        for path, data in SOURCES[name].convert(Members(published())).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def digests(files_: dict[str, bytes]) -> dict[str, str]:
    return {path: digest(path, data) for path, data in files_.items()}
