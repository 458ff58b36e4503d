"""The demo, several times: what federation reaches on the fans against training alone and pooled, with intervals.

Each run is `anabranch demo --seed S` with its real processes and broker: 17 agents, two slow, one killed, one leaving,
one late. Accuracy is that of int8 models on the last 15 s of each recording, the mean over fans; federated: the mean of
the last 5 releases. Intervals are 95 %, Student's t over the seeds. Exits with 1 when a claim does not hold or a run's
own checks fail.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from figures import parse_arguments, print_result, setting

# Student's t, two-sided 95 %, by degrees of freedom (any table; 2.776 for 5 seeds).
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
TIMEOUT_S = 900

# claim -> (figure of a run, the bound that the whole interval must keep)
CLAIMS = {
    "points above models trained alone": ("points_above_alone", "at least", 20.0),
    "points below pooled training": ("points_below_pooled", "at most", 3.0),
    "points that int8 is below its float version": ("points_int8_below_float", "at most", 1.0),
}
ACCURACIES = ("federated", "federated_float", "pooled", "alone", "alone_on_own_fan")


def run(seed: int, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One demo's summary. Raises `SystemExit` with its last words where it fails."""
    command = [
        sys.executable,
        "-m",
        "anabranch",
        "demo",
        "--json",
        "--seed",
        str(seed),
        "--output",
        str(folder),
        *extra,
    ]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if demo.returncode not in (0, 1):
        raise SystemExit(f"seed {seed}: exit code {demo.returncode}\n{demo.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(demo.stdout)
    return summary


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval; one value has none."""
    n = len(values)
    return fmean(values), T_95[n - 2] * stdev(values) / n**0.5 if n > 1 else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many runs, with the seeds 0, 1, ...")
    parser.add_argument("--kill-gateway", action="store_true", help="`kill -9` the gateway in each run, too")
    options = parse_arguments(parser)
    if not 2 <= options.seeds <= len(T_95) + 1:
        parser.error(f"--seeds: 2..{len(T_95) + 1}")
    extra = ["--kill-gateway"] if options.kill_gateway else []
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            runs.append(run(seed, Path(scratch) / str(seed), extra))
            print(f"seed {seed}: {runs[-1]['accuracy']['federated']:.4f}", file=sys.stderr)
    claims = {}
    for claim, (figure, sense, bound) in CLAIMS.items():
        mean, half = interval([r["accuracy"][figure] for r in runs])
        holds = mean - half >= bound if sense == "at least" else mean + half <= bound
        claims[claim] = {"mean": mean, "half_width": half, "bound": f"{sense} {bound:g}", "holds": holds}
    sound = all(r["ok"] for r in runs)
    result = {"setting": setting("onnxruntime", "numpy", "paho-mqtt"), "claims": claims, "sound": sound, "runs": runs}
    print_result(result, tables(runs, claims), options.json)
    return 0 if sound and all(c["holds"] for c in claims.values()) else 1


def tables(runs: list[dict[str, Any]], claims: dict[str, dict[str, Any]]) -> list[list[list[str]]]:
    """Accuracies by seed with their intervals, the claims, and what each run cost."""
    seeds = [f"seed {r['seed']}" for r in runs]
    accuracies = [["accuracy, %", *seeds, "mean", "95 %"]]
    for name in ACCURACIES:
        values = [100 * r["accuracy"][name] for r in runs]
        mean, half = interval(values)
        accuracies.append([name.replace("_", " "), *(f"{v:.2f}" for v in values), f"{mean:.2f}", f"+- {half:.2f}"])
    held = [["claim", "mean", "95 %", "asked", "holds"]]
    for claim, c in claims.items():
        row = [f"{c['mean']:.2f}", f"+- {c['half_width']:.2f}", c["bound"], "yes" if c["holds"] else "NO"]
        held.append([claim, *row])
    facts: dict[str, Callable[[Any], object]] = {
        "versions": lambda r: r["versions"],
        "updates": lambda r: r["updates"]["all"],
        "accepted": lambda r: r["updates"]["verdicts"].get("accepted", 0),
        "counted": lambda r: r["updates"]["disposals"].get("counted", 0),
        "staleness, mean": lambda r: r["staleness"]["mean"],
        "bytes of updates / float32": lambda r: f"1/{r['bytes']['updates_float32'] / r['bytes']['updates']:.1f}",
        "agent's peak, MB": lambda r: f"{r['agent']['peak_mb']:.1f}",
        "training, s": lambda r: r["seconds"]["training"],
        "all in all, s": lambda r: r["seconds"]["total"],
        "ledgers agree": lambda r: "yes" if r["ledgers"]["agree"] else "NO",
        "releases replayed": lambda r: r["replay"]["releases"] if not r["replay"]["differ"] else "DIFFER",
        "gateway killed": lambda r: "yes" if any(h["deed"] == "kill gateway" for h in r["happenings"]) else "no",
    }
    costs = [["the runs", *seeds]] + [[name, *(str(fact(r)) for r in runs)] for name, fact in facts.items()]
    return [accuracies, held, costs]


if __name__ == "__main__":
    sys.exit(main())
