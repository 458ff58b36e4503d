"""Heart disease in four hospitals: Cleveland, Budapest, Zurich and Basel, Long Beach. Numpy only.

Janosi, Steinbrunn, Pfisterer and Detrano, UCI, doi 10.24432/C52P4X; CC BY 4.0; ships with Anabranch. Each hospital is a
client with a seeded split of its patients, 60/20/20, the sick and the healthy alike. Two patients that occur twice are
taken once.

Much is missing, and differently in each hospital: a value that is not known is 0 in the first 13 columns of `x`, and 1
in the 13 flags that follow. A cholesterol or a blood pressure of 0, which no living patient has, counts as not known
(all of Switzerland's cholesterol). Nothing is scaled or filled in: that belongs into the model, from training data.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from anabranch.datasets.federation import Client, Examples, Federation, pooled, stratified
from anabranch.datasets.source import Source, unchanged

LICENCE = "CC-BY-4.0 (data: UCI Heart Disease, doi 10.24432/C52P4X)"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
CLASSES = ("healthy", "disease")
FEATURES = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
COLUMNS = (*FEATURES, *(f"{name}_missing" for name in FEATURES))  # of x
SHARES = (0.6, 0.2, 0.2)  # train, validation, test
_NEVER_0 = (FEATURES.index("trestbps"), FEATURES.index("chol"))

_FOLDER = "heart_disease"
SOURCE = Source(
    urls=("https://archive.ics.uci.edu/static/public/45/heart+disease.zip",),
    max_bytes=5_000_000,
    files={
        f"{_FOLDER}/processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
        f"{_FOLDER}/processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
        f"{_FOLDER}/processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
        f"{_FOLDER}/processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    },
    convert=unchanged({f"{_FOLDER}/processed.{name}.data": f"processed.{name}.data" for name in HOSPITALS}),
)


def load() -> Federation:
    """Four hospitals; `x` float32 (n, 26) as `COLUMNS`, `y` 1 where a vessel is narrowed."""
    clients = []
    for i, hospital in enumerate(HOSPITALS):
        patients = _patients(hospital)
        parts = stratified(patients.y, SHARES, np.random.default_rng([45, i]))
        clients.append(Client(hospital, *(Examples(patients.x[rows], patients.y[rows]) for rows in parts)))
    return pooled("heart_disease", LICENCE, CLASSES, clients)


@cache
def _patients(hospital: str) -> Examples:
    text = (files("anabranch") / "data" / _FOLDER / f"processed.{hospital}.data").read_text("ascii")
    return read_patients(text)


def read_patients(text: str) -> Examples:
    """Patients of a table as UCI has it: 13 features and the diagnosis, `?` for what is missing; each patient once."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
    table: NDArray[np.float32] = np.array(
        [[np.nan if cell == "?" else float(cell) for cell in line.split(",")] for line in lines], np.float32
    )
    values, diagnosis = table[:, :-1], table[:, -1]
    missing = np.isnan(values)
    for column in _NEVER_0:
        missing[:, column] |= values[:, column] == 0
    x = np.concatenate([np.where(missing, 0, values), missing], axis=1).astype(np.float32)
    return Examples(x, (diagnosis > 0).astype(np.int64))
