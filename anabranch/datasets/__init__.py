"""Data sets with their natural clients, split by client or in time: `load(name)`. docs/datasets.md describes them.

The workshop (models/) and the twin (`[data] source = NAME`) train on the same splits.
"""

from collections.abc import Callable, Mapping

from anabranch.datasets import ai4i, beijing_air, fan_vibration, fashion_mnist, har, heart_disease, ratings
from anabranch.datasets.federation import Client, Examples, Federation
from anabranch.datasets.source import Source
from fl_protocol.errors import ConfigError

__all__ = ["LOADERS", "SHIPPED", "SOURCES", "Client", "Examples", "Federation", "load"]

LOADERS: Mapping[str, Callable[[], Federation]] = {
    "ai4i": ai4i.load,
    "beijing_air": beijing_air.load,
    "fan_anomaly": fan_vibration.load_anomaly,
    "fan_vibration": fan_vibration.load,
    "fashion_mnist": fashion_mnist.load,
    "har": har.load,
    "heart_disease": heart_disease.load,
    "ratings": ratings.load,
}
SOURCES: Mapping[str, Source] = {
    "ai4i": ai4i.SOURCE,
    "beijing_air": beijing_air.SOURCE,
    "fan_vibration": fan_vibration.SOURCE,
    "fashion_mnist": fashion_mnist.SOURCE,
    "har": har.SOURCE,
    "heart_disease": heart_disease.SOURCE,
}
SHIPPED = ("ai4i", "fan_anomaly", "fan_vibration", "heart_disease", "ratings")  # load without any file of yours


def load(name: str) -> Federation:
    """The data set of that name. Raises `ConfigError` for another name, or where its files are not there."""
    if name not in LOADERS:
        raise ConfigError(f"there is no data set {name!r}", f"one of: {', '.join(LOADERS)}")
    return LOADERS[name]()
