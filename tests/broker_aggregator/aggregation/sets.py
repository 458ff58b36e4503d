"""Buffers and chains to try the rules on."""

from dataclasses import replace

import numpy as np

from broker_aggregator.aggregation import Context, UpdateMeta, UpdateSet
from broker_aggregator.aggregation.recipes import ALIASES, RULES, least_updates, make_aggregator
from fl_protocol.messages import Plan
from tests.support.fleet import LAYOUT

PLAN = Plan(
    task="fan",
    revision=1,
    state="running",
    bundle_sha256="0" * 64,
    bundle_size=1,
    fingerprint=LAYOUT.fingerprint,
    buffer=4,
    example_exponent="0",
)
TRUSTED = "d0"  # of FLTrust: the buffer's first
COMPOSED = (
    "clip+mean",
    "nova+mean",
    "arc+mean",
    "near+mean",
    "near+screen+mean",
    "clip+fltrust",
    "bucketing+krum",
    "bucketing+median",
    "nnm+median",
    "nnm+geometric-median",
    "arc+nnm+trimmed-mean",
    "near+arc+nnm+trimmed-mean",
    "nova+clip+centred-clipping",
    "screen+arc+nnm+trimmed-mean",
)
CHAINS = (*RULES, *COMPOSED)


def stands_some(name):
    """Whether the chain stands bad updates, and so has an f."""
    *wrappers, last = ALIASES.get(name, name).split("+")
    return RULES[last].needs is not None or bool({"near", "arc"} & set(wrappers))


ROBUST = tuple(name for name in CHAINS if stands_some(name))


def plan_of(name, f=1, **settings):
    """A plan of a rule with its f, where it has one."""
    told = {"f": str(f)} if stands_some(name) else {}
    trusted = {"trusted": TRUSTED} if name.endswith("fltrust") else {}
    return replace(PLAN, rule={"name": name, **told, **trusted, **settings})


def rule_of(name, f=1, **settings):
    return make_aggregator(plan_of(name, f, **settings))


def enough(name, f=1):
    """How many updates the chain needs to stand f of them."""
    return least_updates(plan_of(name, f))


def set_of(rows, *, devices=None, staleness=None, examples=None, steps=None, block_bytes=1 << 20):
    """Rows, shape (K, P), as a buffer; nobody can write to what it decodes."""
    rows = np.asarray(rows, np.float32)
    rows.setflags(write=False)
    n = len(rows)
    devices = devices or [f"d{i}" for i in range(n)]
    meta = [
        UpdateMeta(device, tau, count, taken, float(np.linalg.norm(row.astype(np.float64))))
        for device, tau, count, taken, row in zip(
            devices, staleness or [0] * n, examples or [100] * n, steps or [5] * n, rows, strict=True
        )
    ]
    return UpdateSet(meta, lambda i: rows[i], rows.shape[1], block_bytes=block_bytes)


def step_of(rule, updates, *, state=None, version=0, rng=None):
    """The step of a rule that remembers nothing yet."""
    state = rule.init(updates.size) if state is None else state
    return rule.aggregate(state, updates, Context(version), rng or np.random.default_rng(0))[1]


def gaussian(seed, n, size=6, spread=0.5):
    """Devices that agree roughly: a common direction, and each its own."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=size) + spread * rng.normal(size=(n, size))).astype(np.float32)


class Drawn:
    """A generator whose one permutation is known."""

    def __init__(self, order):
        self.order = np.array(order)

    def permutation(self, n):
        assert n == len(self.order)
        return self.order
