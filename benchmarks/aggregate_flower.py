"""One case of bench_aggregate.py in Flower's own environment: its aggregation functions on the same updates.

`from`: "bytes" begins with what its server receives (FitRes), as its strategies do; "arrays" with numpy arrays.
"""

from functools import partial
from typing import Any

import numpy as np
from aggregate_measuring import answer, case, delta, examples, measure, shapes
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays  # type: ignore[import-not-found]
from flwr.server.strategy import aggregate as flower  # type: ignore[import-not-found]


def main() -> None:
    asked = case()
    size, f = asked["size"], asked["f"]
    functions = {
        "mean": flower.aggregate,
        "median": flower.aggregate_median,
        "trimmed-mean": partial(flower.aggregate_trimmed_avg, proportiontocut=f / asked["updates"]),
        "krum": partial(flower.aggregate_krum, num_malicious=f, to_keep=0),
        "multi-krum": partial(flower.aggregate_krum, num_malicious=f, to_keep=asked["updates"] - f),
        "bulyan": partial(flower.aggregate_bulyan, num_malicious=f, aggregation_rule=flower.aggregate_krum, to_keep=0),
    }
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes(size)])[:-1]
    results: list[Any] = []
    for i, num_examples in enumerate(examples(asked["updates"], asked["equal"])):
        parts = np.split(delta(i, size), ends)
        layers = [part.reshape(shape).copy() for part, shape in zip(parts, shapes(size), strict=True)]
        if asked["from"] == "bytes":
            results.append((None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(layers), num_examples, {})))
        else:
            results.append((layers, num_examples))
    made: list[Any] = []

    def turn() -> None:
        """As FedAvg, FedMedian, Krum, ... do in `aggregate_fit`."""
        if asked["rule"] == "mean in place":
            made[:] = flower.aggregate_inplace(results)
        elif asked["from"] == "bytes":
            arrays = [(parameters_to_ndarrays(res.parameters), res.num_examples) for _, res in results]
            made[:] = functions[asked["rule"]](arrays)
        else:
            made[:] = functions[asked["rule"]](list(results))

    result = measure({"rule": turn}, "rule", asked["seconds"], asked["least"])
    answer(result, np.concatenate([np.ravel(layer) for layer in made]).astype(np.float32))
