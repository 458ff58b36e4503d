"""Air in Beijing: PM2.5 six hours ahead, from the last 24 hours at a station. Numpy only.

Zhang et al., Proc. R. Soc. A 473:20170457, 2017; UCI Beijing Multi-Site Air Quality, doi 10.24432/C5RK5G; CC BY 4.0.
Not in this repository: `python -m models data beijing_air` fetches it. Twelve stations, one client each, hourly from
March 2013 to February 2017. Split in time: until the end of 2015 training, the first half of 2016 validation, the rest
test. Nothing crosses a border, neither a window with its target nor a value that is carried forward.

A reading that is missing is the last one before it; where that is more than six hours old it counts as stale, and a
column says how many of the eleven are. A window is left out where its target is missing, or a reading was never made.
"""

import csv
import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation, pooled
from anabranch.datasets.source import Origin, Source, dataset_file, npz
from fl_protocol.errors import ConfigError

LICENCE = "CC-BY-4.0 (data: UCI Beijing Multi-Site Air Quality, doi 10.24432/C5RK5G)"
HOURS = 24  # of a window
AHEAD = 6  # hours from a window's last reading to its target
STRIDE = 3  # hours between windows
FRESH = 6  # hours for which a reading is carried forward without being called stale
READINGS = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
COLUMNS = (*READINGS, "wind sin", "wind cos", "hour sin", "hour cos", "share stale")  # of x
_WINDS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
_STATIONS = (
    "Aotizhongxin", "Changping", "Dingling", "Dongsi", "Guanyuan", "Gucheng", "Huairou", "Nongzhanguan", "Shunyi",
    "Tiantan", "Wanliu", "Wanshouxigong",
)  # fmt: skip
_FILE = "beijing_air/beijing_air.npz"
# Borders as year * 100 + month: from one (included) to the next.
_PARTS = ((201303, 201601), (201601, 201607), (201607, 201703))  # train, validation, test


def load() -> Federation:
    """Twelve stations; `x` float32 (n, 24, 16), oldest hour first, as `COLUMNS`; `y` float32 (n, 1), PM2.5 in ug/m3.

    Raises `ConfigError` without the data.
    """
    values, wind, time, stations = _archive(dataset_file("beijing_air", _FILE))
    months = time[:, 0].astype(int) * 100 + time[:, 1]
    parts = [slice(*np.searchsorted(months, borders).tolist()) for borders in _PARTS]
    clients = [
        Client(
            f"station-{station.lower()}", *(windows(values[i, part], wind[i, part], time[part, 3]) for part in parts)
        )
        for i, station in enumerate(stations)
    ]
    return pooled("beijing_air", LICENCE, (), clients)


def windows(values: NDArray[np.float32], wind: NDArray[np.int8], hour: NDArray[np.int16]) -> Examples:
    """Windows of one station's hours: `values` (T, 11) with NaN where missing, `wind` (T,) 0..15 or -1, `hour` (T,)."""
    hours = len(values)
    if hours < HOURS + AHEAD:
        return Examples(np.empty((0, HOURS, len(COLUMNS)), np.float32), np.empty((0, 1), np.float32))
    now = np.arange(hours)[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, now), axis=0)  # when it was read, (T, 11)
    carried = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    stale = (now - last > FRESH).mean(axis=1)
    # A wind that is not known has no direction: neither sine nor cosine.
    towards, known, clock = wind * (np.pi / 8), wind >= 0, hour * (np.pi / 12)
    around = [np.sin(towards) * known, np.cos(towards) * known, np.sin(clock), np.cos(clock), stale]
    table = np.concatenate([carried, np.stack(around, axis=1)], axis=1).astype(np.float32)
    starts = np.arange(0, hours - HOURS - AHEAD + 1, STRIDE)
    target = values[starts + HOURS - 1 + AHEAD, READINGS.index("PM2.5")]
    starts, target = (a[~np.isnan(target) & (last[starts] >= 0).all(axis=1)] for a in (starts, target))
    x = np.lib.stride_tricks.sliding_window_view(table, HOURS, axis=0)[starts].transpose(0, 2, 1)
    return Examples(np.ascontiguousarray(x), target[:, None].astype(np.float32))


_Archive = tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int16], list[str]]


@cache
def _archive(path: Path) -> _Archive:
    with np.load(path, allow_pickle=False) as data:
        if tuple(data["columns"].tolist()) != READINGS:
            raise ConfigError(f"{path} has other columns than {', '.join(READINGS)}", "fetch the data again")
        return data["values"], data["wind_dir"], data["time"], data["stations"].tolist()


def convert(origin: Origin) -> dict[str, bytes]:
    """One table a station (in an archive in UCI's archive) as arrays: `values`, `wind_dir`, `time`, and their names."""
    values, winds, times = [], [], []
    for station in _STATIONS:
        rows = csv.DictReader(io.StringIO(origin.read(f"PRSA_Data_{station}_*.csv").decode("utf-8-sig")))
        if absent := {*READINGS, "wd", "year", "month", "day", "hour"} - set(rows.fieldnames or ()):
            raise ConfigError(f"{station} has no column {sorted(absent)[0]}", "take the archive of UCI data set 501")
        table = list(rows)
        readings = [[np.nan if row[name] == "NA" else float(row[name]) for name in READINGS] for row in table]
        values.append(np.array(readings, np.float32))
        winds.append(np.array([-1 if row["wd"] == "NA" else _WINDS.index(row["wd"]) for row in table], np.int8))
        times.append(np.array([[int(row[t]) for t in ("year", "month", "day", "hour")] for row in table], np.int16))
    if any(not np.array_equal(time, times[0]) for time in times):
        raise ConfigError("the stations' tables have different hours", "take the archive of UCI data set 501")
    names = {"stations": _STATIONS, "columns": READINGS, "wind_names": _WINDS}
    arrays = {name: np.array(value) for name, value in names.items()}
    return {_FILE: npz(values=np.stack(values), wind_dir=np.stack(winds), time=times[0], **arrays)}


SOURCE = Source(
    urls=("https://archive.ics.uci.edu/static/public/501/beijing+multi+site+air+quality+data.zip",),
    max_bytes=30_000_000,
    files={_FILE: "560ce2b0690bdb8e140653167611a9bd2e786e2c8e9feaa2cd7b6828b764f04e"},
    convert=convert,
)
