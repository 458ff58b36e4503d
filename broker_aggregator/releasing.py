"""One buffer and one version in, the next version out. Pure: the store replays releases by calling this again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker_aggregator.aggregation import Context, State, UpdateMeta, UpdateSet
from broker_aggregator.aggregation.mean import believed
from broker_aggregator.aggregation.recipes import make_aggregator, make_server_optimizer, tolerated
from broker_aggregator.events import Release
from fl_protocol.compression import decode_statistics, make_compressor
from fl_protocol.deltas import downlink_step, encode_delta, reconstruct
from fl_protocol.messages import Plan, Update
from fl_protocol.tensors import ModelLayout, SparseVector, Vector, vector_bytes

FAR = 10  # median absolute deviations of a statistic, some seven standard deviations


@dataclass(frozen=True)
class Buffered:
    """An accepted update that waits to be counted."""

    update: Update
    norm: float
    scale: float  # in 0..1, see `admission.measure`
    num_bytes: int

    @property
    def name(self) -> tuple[str, str, int]:
        """(device, incarnation, seq)."""
        return self.update.device, self.update.incarnation, self.update.seq


def digest(vector: Vector) -> str:
    """A version's SHA-256: of its float32 values, little-endian."""
    return hashlib.sha256(vector_bytes(vector)).hexdigest()


def first_release(plan: Plan, layout: ModelLayout, version: int, initial: Vector) -> Release:
    """The bundle's initial parameters as a version."""
    optimizer = make_server_optimizer(plan).init(layout.num_parameters)
    return Release(
        task=plan.task,
        version=version,
        plan_revision=plan.revision,
        fingerprint=layout.fingerprint,
        vector=initial,
        sha256=digest(initial),
        share=0.0,
        optimizer=optimizer,
    )


def same_again(base: Release, plan: Plan, elapsed_s: float) -> Release:
    """The same vector as the next version: versions never go back, and a device trains each of them at most once."""
    return replace(
        base,
        version=base.version + 1,
        plan_revision=plan.revision,
        used=(),
        staleness=(),
        share=0.0,
        num_examples=0,
        num_bytes=0,
        step_norm=0.0,
        elapsed_s=elapsed_s,
        delta=None,  # whoever holds it knows it by its SHA-256
    )


def next_release(
    plan: Plan,
    layout: ModelLayout,
    base: Release,
    used: Sequence[Buffered],
    elapsed_s: float = 0.0,
    staleness: Sequence[int] | None = None,
    share: float | None = None,
) -> Release:
    """Aggregate `used`, in order, on top of `base`.

    w_{t+1} = w_t + eta_s (b/K) sum_i n_i^rho s(tau_i) delta_i / sum_i n_i^rho, with tau measured now. `staleness` and
    `share` are given by a replay, which repeats what was done then. Where the plan has a `downlink`, what is published
    is what few bytes say of it, and the rest is carried to the next version.
    """
    size = layout.num_parameters
    if staleness is None:
        staleness = [base.version - b.update.base_version for b in used]
    if share is None:
        share = 1.0 if plan.in_rounds else min(1.0, len(used) / plan.buffer)

    def decode(i: int) -> Vector:
        delta = make_compressor(used[i].update.codec, layout).decompress(used[i].update.payload)
        return delta if used[i].scale == 1 else delta * np.float32(used[i].scale)

    def decode_sparse(i: int) -> SparseVector | None:
        found = make_compressor(used[i].update.codec, layout).decompress_sparse(used[i].update.payload)
        if found is None or used[i].scale == 1:
            return found
        return replace(found, values=found.values * np.float32(used[i].scale))

    meta = [
        UpdateMeta(b.update.device, tau, b.update.num_examples, b.update.local_steps, b.norm * b.scale)
        for b, tau in zip(used, staleness, strict=True)
    ]
    rule, optimizer = make_aggregator(plan), make_server_optimizer(plan)
    rng = np.random.default_rng(base.version)  # a rule that draws gives the same bits again at a replay
    updates = UpdateSet(meta, decode, size, decode_sparse)
    context = Context(base.version - plan.origin)
    memory, full = rule.aggregate(_remembered(rule.init(size), base.rule), updates, context, rng)
    step = full if share == 1 else np.float32(share) * full
    state = _remembered(optimizer.init(size), base.optimizer)
    meant = base.vector + base.residual if base.residual.size else base.vector
    params, state = optimizer.apply(meant[:size], step, state, max(staleness))
    statistics = _statistics(plan, layout, meant[size:], used, share)
    wanted = vector = np.concatenate([params, statistics])
    grain, delta, residual = downlink_step(plan.downlink or {}), None, base.residual[:0]
    if grain is not None and np.isfinite(wanted).all():
        vector = reconstruct(layout, base.vector, wanted, grain)
        residual, delta = wanted - vector, encode_delta(layout, base.vector, vector)
    return Release(
        task=plan.task,
        version=base.version + 1,
        plan_revision=plan.revision,
        fingerprint=layout.fingerprint,
        vector=vector,
        sha256=digest(vector),
        used=tuple(b.name for b in used),
        staleness=tuple(staleness),
        share=share,
        rule=memory,
        optimizer=state,
        num_examples=sum(m.num_examples for m in meta),
        num_bytes=sum(b.num_bytes for b in used),
        step_norm=float(np.linalg.norm(step)),
        elapsed_s=elapsed_s,
        residual=residual,
        delta=delta,
    )


def _remembered(known: State, before: State) -> State:
    """A memory as the plan's rule knows it: what another rule before it left behind is dropped.

    A name that ends with a slash stands for all names that begin with it.
    """
    groups = tuple(name for name in known if name.endswith("/"))
    return {**known, **{k: v for k, v in before.items() if k in known or k.startswith(groups)}}


def _statistics(plan: Plan, layout: ModelLayout, now: Vector, used: Sequence[Buffered], share: float) -> Vector:
    """Measured, not learnt: the mean over devices by examples, mixed in by how full the buffer was.

    Under a rule that stands attackers, values far from the median are drawn in: a range or a moment is as good a door
    as a delta. (Their trimmed mean cost a point on HAR: of skewed ranges it is too small.)
    """
    if not layout.num_statistics:
        return now
    values = np.stack([decode_statistics(b.update.statistics, layout) for b in used])
    if tolerated(plan):
        middle = np.median(values, axis=0)
        far = FAR * np.median(np.abs(values - middle), axis=0)
        values = np.clip(values, middle - far, middle + far)
    examples = np.array(believed([b.update.num_examples for b in used]))
    mean = (examples / examples.sum()) @ values.astype(np.float64)
    mixed: Vector = (now + (mean - now) * share).astype(np.float32)
    return mixed
