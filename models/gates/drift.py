"""The gate on many training steps: onnxruntime strays from torch no further than torch from itself."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import onnxruntime
import torch

from models.gates.bench import Arrays, Bench, Gate, distance, train_onnx, train_torch
from models.gates.inference import score_text
from models.step import Step

STEPS = 200
STARTS = 4  # the initial version, and others within 1e-7 of it
FLOOR = 1e-6  # of the distance, in float
# With fake quantization, of a small network: a code that flips in ours while none did in torch's few runs (9e-4 seen).
# What a step computes is held to 1e-7 by the gates on one step; this one is about where many of them lead.
FLOOR_OF_CODES = 5e-3
METRIC_APART = 0.3  # points (`Bench.points_lost`)


def drift_gate(bench: Bench, step: Step, session: onnxruntime.InferenceSession) -> Iterator[Gate]:
    """`STEPS` on real examples, from `STARTS` starts that differ by 1e-7, in both.

    In training a difference grows, and a code that flips makes it a large one: two runs of torch itself end apart. So
    the distance of a pair of runs from one start is held against that of torch's runs from two starts, and the mean
    metric on held-out examples against torch's within `METRIC_APART` or three standard errors, whichever is more.
    """
    floor = FLOOR_OF_CODES if step.quantized else FLOOR
    starts = [bench.initial, *(_nudged(bench.initial, seed) for seed in range(1, STARTS))]
    ours = [bench.repeat(lambda given: train_onnx(session, given), start, STEPS) for start in starts]
    theirs = [bench.repeat(lambda given: train_torch(step, given, torch.float32), start, STEPS) for start in starts]
    apart = float(np.mean([distance(a, b) for a, b in zip(ours, theirs, strict=True)]))
    usual = float(np.mean([distance(a, b) for a, b in combinations(theirs, 2)]))
    x, y = bench.held_out
    scores = [[bench.score(bench.output_torch(step, run, x), y) for run in runs] for runs in (ours, theirs)]
    our_score, their_score = (float(np.mean(part)) for part in scores)
    error = float(np.sqrt(sum(np.var(part, ddof=1) for part in scores) / STARTS))
    bound = max(METRIC_APART, abs(bench.points_lost(0.0, 3 * error)))
    cost = abs(bench.points_lost(their_score, our_score))
    yield Gate(
        f"{STEPS} steps, {'int8-aware' if step.quantized else 'float'} network",
        f"{apart:.1e} from torch, {apart / max(usual, 1e-12):.1f} times what two torch runs are apart; "
        f"{bench.spec.metric.name} {score_text(our_score, bench.spec)}, in torch {score_text(their_score, bench.spec)}",
        f"{3 * usual + floor:.1e} (3 times two torch runs, 1e-7 apart at the start), {bound:.2g} points",
        apart <= 3 * usual + floor and cost <= bound,
    )


def _nudged(entries: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(a * (1 + 1e-7 * rng.standard_normal(a.shape)), np.float32) for n, a in entries.items()}
