"""Bucketing: averages of a few random updates, which are more alike, go on instead of them."""

import numpy as np

from broker_aggregator.aggregation import Aggregator, Context
from broker_aggregator.aggregation.chain import Wrapper
from broker_aggregator.aggregation.updates import UpdateMeta, UpdateSet


class Bucketed(Wrapper):
    """Shuffles, and averages `bucket` at a time. The rule inside needs the same f of fewer rows.

    Karimireddy et al., "Byzantine-robust learning on heterogeneous datasets via bucketing", arXiv:2006.09365.
    """

    def __init__(self, inner: Aggregator, bucket: int = 2) -> None:
        super().__init__(inner)
        self.bucket = bucket

    def rows(self, updates: UpdateSet, context: Context, rng: np.random.Generator) -> UpdateSet:  # noqa: ARG002
        """See `Wrapper.rows`."""
        order = rng.permutation(len(updates))
        parts = [order[at : at + self.bucket] for at in range(0, len(order), self.bucket)]
        matrix = np.zeros((len(parts), len(updates)))
        for row, part in zip(matrix, parts, strict=True):
            row[part] = 1 / len(part)
        return updates.mixed(matrix, [_merged([updates.meta[i] for i in part]) for part in parts])


def _merged(meta: list[UpdateMeta]) -> UpdateMeta:
    n = len(meta)
    return UpdateMeta(
        device="+".join(m.device for m in meta),
        staleness=max(m.staleness for m in meta),
        num_examples=sum(m.num_examples for m in meta),
        local_steps=max(1, sum(m.local_steps for m in meta) // n),
        norm=sum(m.norm for m in meta) / n,
    )
