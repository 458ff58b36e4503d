"""One case of bench_aggregate.py: a rule of the gateway's on updates of one codec, or on vectors that are there."""

from functools import cache
from typing import Any

import numpy as np
from aggregate_measuring import Turn, Vector, answer, case, delta, examples, measure, shapes

from broker_aggregator.aggregation import Context, UpdateMeta, UpdateSet
from broker_aggregator.aggregation.recipes import make_aggregator
from fl_protocol.compression import make_compressor
from fl_protocol.messages import Plan
from fl_protocol.tensors import ModelLayout, SparseVector, TensorEntry


@cache
def layout_of(size: int) -> ModelLayout:
    """Flower's layers are our tensors."""
    return ModelLayout(tuple(TensorEntry(f"t{i}", shape, "parameter") for i, shape in enumerate(shapes(size))))


def plan_of(rule: dict[str, str], updates: int, fingerprint: str) -> Plan:
    """A plan with the rule, whose updates count by their examples, as Flower's do."""
    return Plan(
        task="bench",
        revision=1,
        state="running",
        bundle_sha256="0" * 64,
        bundle_size=1,
        fingerprint=fingerprint,
        buffer=updates,
        example_exponent="1",
        rule=rule,
    )


class Buffer:
    """Updates as payloads of a codec, or, without one, as decoded vectors."""

    def __init__(self, updates: int, size: int, codec: dict[str, str] | None, equal: bool) -> None:
        self.size = size
        self.codec = None if codec is None else make_compressor(codec, layout_of(size))
        self.vectors: list[Vector] = []
        self.payloads: list[bytes] = []
        self.meta: list[UpdateMeta] = []
        for i, num_examples in enumerate(examples(updates, equal)):
            vector = delta(i, size)
            if self.codec is None:
                self.vectors.append(vector)
            else:
                self.payloads.append(self.codec.compress(vector, np.random.default_rng(i)))
                vector = self.codec.decompress(self.payloads[i])
            norm = float(np.linalg.norm(vector.astype(np.float64)))  # admission has measured it
            self.meta.append(UpdateMeta(f"d{i}", 0, num_examples, 10, norm))

    def updates(self) -> UpdateSet:
        """As the gateway makes them of a buffer, with nothing decoded yet."""
        return UpdateSet(self.meta, self._decode, self.size, self._decode_sparse)

    def _decode(self, i: int) -> Vector:
        return self.vectors[i] if self.codec is None else self.codec.decompress(self.payloads[i])

    def _decode_sparse(self, i: int) -> SparseVector | None:
        return None if self.codec is None else self.codec.decompress_sparse(self.payloads[i])


def bare_pass(vectors: list[Vector]) -> Turn:
    """np.add over them in float32, as fast as numpy reads them."""

    def turn() -> None:
        total = np.zeros_like(vectors[0])
        for vector in vectors:
            np.add(total, vector, out=total)

    return turn


def main() -> None:
    asked = case()
    buffer = Buffer(asked["updates"], asked["size"], asked["codec"], asked["equal"])
    rule = make_aggregator(plan_of(asked["rule"], asked["updates"], layout_of(asked["size"]).fingerprint))
    state = rule.init(asked["size"])
    made: list[Vector] = []

    def turn() -> None:
        made[:] = [rule.aggregate(state, buffer.updates(), Context(), np.random.default_rng(0))[1]]

    turns: dict[str, Turn] = {"rule": turn}
    if buffer.codec is None:
        turns["np.add"] = bare_pass(buffer.vectors)
    result: dict[str, Any] = measure(turns, "rule", asked["seconds"], asked["least"])
    result["bytes"] = sum(map(len, buffer.payloads)) / len(buffer.meta)
    answer(result, made[0])
