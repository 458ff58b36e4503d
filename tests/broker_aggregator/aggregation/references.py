"""The rules once more, as the papers have them: float64, loops, and nothing shared with the rules themselves.

`rows` are a list of vectors of shape (P,), float64.
"""

from itertools import combinations
from math import ceil, exp, floor, inf, sqrt

import numpy as np


def length(v):
    return sqrt(sum(float(x) ** 2 for x in v))


def distance(a, b):
    return length(a - b)


def mean_of(rows):
    return sum(rows[1:], rows[0].copy()) / len(rows)


# --- ages ---


def polynomial(tau, p):
    return 1 / (1 + tau) ** p


def hinge(tau, after, slope):
    """FedAsync, section 5.2."""
    return 1.0 if tau <= after else 1 / (slope * (tau - after) + 1)


def annealed(tau, start, end, over, version):
    """The exponent goes from start to end in a straight line, and stays."""
    p = end if version >= over else start + (end - start) * version / over
    return polynomial(tau, p)


# --- rules ---


def weighted_mean(rows, examples, discounts, rho):
    middle = float(np.median(examples))
    weights = [min(n, 10 * middle) ** rho for n in examples]
    total = np.zeros_like(rows[0])
    for row, weight, discount in zip(rows, weights, discounts, strict=True):
        total = total + weight * discount * row
    return total / sum(weights)


def trimmed_mean(rows, f):
    out = []
    for coordinate in zip(*rows, strict=True):
        kept = sorted(coordinate)[f : len(rows) - f]
        out.append(sum(kept) / len(kept))
    return np.array(out)


def median(rows):
    out = []
    for coordinate in zip(*rows, strict=True):
        ordered, n = sorted(coordinate), len(rows)
        out.append(ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2)
    return np.array(out)


def krum_score(rows, i, f):
    others = sorted(distance(rows[i], rows[j]) ** 2 for j in range(len(rows)) if j != i)
    return sum(others[: max(1, len(rows) - f - 2)])


def company(rows, i):
    return sum(distance(rows[i], row) ** 2 for row in rows)


def by_krum(rows, f):
    """Indices, the best first; equal scores by all distances."""
    return sorted(range(len(rows)), key=lambda i: (round(krum_score(rows, i, f), 12), company(rows, i)))


def multi_krum(rows, f, keep):
    return mean_of([rows[i] for i in by_krum(rows, f)[:keep]])


def bulyan(rows, f):
    left, chosen = list(rows), []
    while len(chosen) < len(rows) - 2 * f:
        chosen.append(left.pop(by_krum(left, f)[0]))
    keep, middle = len(chosen) - 2 * f, median(chosen)
    out = []
    for c, m in enumerate(middle):
        nearest = sorted((abs(row[c] - m), row[c]) for row in chosen)[:keep]
        out.append(sum(value for _, value in nearest) / keep)
    return np.array(out)


def sum_of_distances(rows, point):
    return sum(distance(row, point) for row in rows)


def centred_clipping(rows, centre, radius=None, iterations=3):
    v = centre
    for _ in range(iterations):
        distances = [distance(row, v) for row in rows]
        tau = float(np.median(distances)) if radius is None else radius
        moves = [(row - v) * (min(1.0, tau / d) if d else 1.0) for row, d in zip(rows, distances, strict=True)]
        v = v + mean_of(moves)
    return v


def fltrust(rows, trusted):
    total, trust = np.zeros_like(trusted), 0.0
    for row in rows:
        cosine = sum(a * b for a, b in zip(row, trusted, strict=True)) / length(row) / length(trusted)
        score = max(0.0, cosine)
        total, trust = total + score * row * (length(trusted) / length(row)), trust + score
    return total / trust


# --- wrappers: rows in, rows out ---


def clip_to(rows, most):
    return [row * min(1.0, most / length(row)) if length(row) else row for row in rows]


def arc(rows, f):
    n = len(rows)
    k = floor(2 * (f / n) * (n - f) + 1e-12)
    norms = sorted((length(row) for row in rows), reverse=True)
    return clip_to(rows, norms[k])


def nnm(rows, f):
    n = len(rows)
    out = []
    for row in rows:
        nearest = sorted(range(n), key=lambda j: distance(row, rows[j]))[: n - f]
        out.append(mean_of([rows[j] for j in nearest]))
    return out


def buckets(rows, order, size):
    return [mean_of([rows[i] for i in order[at : at + size]]) for at in range(0, len(order), size)]


def fednova(rows, steps):
    middle = float(np.median(steps))
    usual = sum(min(max(s, middle / 4), 4 * middle) for s in steps) / len(steps)
    return [row * min(4.0, max(0.25, usual / s)) for row, s in zip(rows, steps, strict=True)]


def geometric_median(rows):
    """By Weiszfeld in many small steps, from the coordinate-wise median on."""
    point = median(rows)
    for _ in range(1000):
        weights = [1 / max(1e-12, distance(row, point)) for row in rows]
        point = sum((w * row for w, row in zip(weights, rows, strict=True)), np.zeros_like(point)) / sum(weights)
    return point


def near(rows, reach, before=0.0):
    """What is kept, and the distance that is ordinary."""
    middle = geometric_median(rows)
    distances = [distance(row, middle) for row in rows]
    ordinary = max(float(np.median(distances)), before)
    return [row for row, d in zip(rows, distances, strict=True) if d <= reach * ordinary], ordinary


def next_bound(bound, rows, quantile):
    """Adaptive clipping, from one buffer to the next."""
    below = sum(length(row) <= bound for row in rows) / len(rows)
    return bound * exp(-0.2 * (below - quantile))


class Screen:
    """Reputations and the direction of late, over many buffers."""

    def __init__(self, size):
        self.direction, self.names = np.zeros(size), {}

    def kept(self, rows, devices):
        middle = float(np.median([length(row) for row in rows]))
        for row, device in zip(rows, devices, strict=True):
            plausible = 0.1 * middle <= length(row) <= 5 * middle
            if length(self.direction):
                cosine = float(row @ self.direction) / length(row) / length(self.direction)
                plausible = plausible and cosine >= -0.1
            self.names[device] = 0.9 * self.names.get(device, 1.0) + 0.1 * plausible
        best = sorted(range(len(rows)), key=lambda i: -self.names[devices[i]])
        chosen = best[: ceil(len(rows) / 2)]
        chosen += [i for i in best if i not in chosen and self.names[devices[i]] >= 0.5]
        return [rows[i] for i in sorted(chosen)]

    def moved(self, step):
        self.direction = 0.9 * self.direction + 0.1 * step


# --- counting ---


def chance_of_more(f, buffer, num_devices, hostile):
    """Every buffer there may be, one by one; devices below `hostile` are."""
    all_buffers = list(combinations(range(num_devices), buffer))
    return sum(sum(d < hostile for d in b) > f for b in all_buffers) / len(all_buffers)


# --- server optimizers: parameter by parameter ---


def optimized(kind, params, steps, rate, beta1, beta2, epsilon, delay=inf, staleness=0):
    """The parameters after each of some steps; Reddi et al., algorithm 2, and FADAS, algorithm 1."""
    w = [float(x) for x in params]
    m, v = [0.0] * len(w), [epsilon**2] * len(w)
    largest = list(v)
    for step in steps:
        for i, d in enumerate(float(x) for x in step):
            m[i] = beta1 * m[i] + (1 - beta1) * d
            if kind == "adagrad":
                v[i] += d * d
            elif kind == "yogi":
                v[i] -= (1 - beta2) * d * d * float(np.sign(v[i] - d * d))
            else:
                v[i] = beta2 * v[i] + (1 - beta2) * d * d
            largest[i] = max(largest[i], v[i])
            below = largest[i] if kind == "fadas" else v[i]
            now = min(rate, 1 / staleness) if staleness > delay else rate
            w[i] += now * m[i] / (sqrt(below) + epsilon)
    return np.array(w)
