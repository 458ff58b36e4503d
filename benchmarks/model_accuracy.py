"""How good each model of the catalog is, what quantization loses, and how far a federation is from pooled training.

For each model and seed: pooled training of the float network, pooled quantization-aware training (QAT), and the
federated, asynchronous QAT of benchmarks/experiments/models/NAME.toml in the twin. One seed's variants begin with the
same parameters; pooled ones see the same batches. Validation says when to stop and which parameters to keep; the test
set is measured once. `float` and `fake-quant` are the networks that trained, `int8` is the exported model in
onnxruntime. Intervals are 95 %, Student's t over the seeds; differences are paired by seed.

What was trained is kept in --cache by its content, so that a rerun is cheap.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_runs import EXPERIMENTS, Case, Extra, Schedule, run_case
from figures import parse_arguments, print_result, setting
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from anabranch.simulator.compare import estimate
from models.anomaly_autoencoder.model import Config as AutoencoderConfig
from models.fan_vibration.model import Config as FanConfig
from models.fan_vibration.model import FanVibration
from models.spec import Splits, catalog, load

# `stand_in` is for schedules, not for data. A model with personal entries is another one on each device: pooling all
# examples under one person's entries, or judging a version without any device's, would say nothing of it.
NO_MODELS = ("stand_in", "recommender")
# Where a model needs another schedule than the default, and why.
SCHEDULES: Mapping[str, Schedule] = {
    "fashion_dscnn": Schedule(
        8, 6, 2, 20_000, "pooled, 20,000 of 55,000 pictures and 8 epochs at most: all of them take an hour"
    ),
    "har_gru": Schedule(
        30, 10, 1, None, "30 epochs at most: an epoch of unrolled steps takes ten times a convolution's"
    ),
    "air_forecast": Schedule(8, 10, 5, None, "8 epochs at most, measured five times in each: 98,000 windows"),
}
VARIANTS = ("float", "qat", "federated")


def area_under_curve(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher; ties count half (Mann-Whitney)."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def failures(output: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """AUC, and F1 of predicting a failure where the second class is the likelier one."""
    rows = output.reshape(len(y), -1).astype(np.float64)
    scores, positive = rows[:, -1] - (rows[:, 0] if rows.shape[1] > 1 else 0.0), y.reshape(-1) > 0
    found = scores > 0
    hits = float((found & positive).sum())
    return {"AUC": area_under_curve(scores, positive), "F1": 2 * hits / max(1.0, float(found.sum() + positive.sum()))}


def anomalies(output: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """AUC of the reconstruction error for whatever is not the class 0 that it was trained on."""
    return {"AUC": area_under_curve(output.reshape(-1).astype(np.float64), y.reshape(-1) > 0)}


def errors(output: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """Root mean square and mean absolute error, in y's unit."""
    off = output.reshape(len(y), -1).astype(np.float64) - y.reshape(len(y), -1)
    return {"RMSE": float(np.sqrt(np.square(off).mean())), "MAE": float(np.abs(off).mean())}


def persistence(splits: Splits) -> dict[str, float]:
    """What the last hour's PM2.5, the first column of x, is worth as a forecast."""
    x, y = splits.test
    return errors(x[:, -1, 0], y)


def means(splits: Splits) -> dict[str, float]:
    """What the training ratings' mean is worth, and with each film's own deviation from it."""
    (x, y), (tx, ty) = splits.train, splits.test
    mean, film = float(y.mean()), x.reshape(len(x), -1)[:, -1]
    sums, counts = (np.bincount(film, w) for w in (y.reshape(-1) - mean, None))
    bias = sums / (counts + 5.0)  # drawn towards 0 where there are few
    at = np.minimum(tx.reshape(len(tx), -1)[:, -1], len(bias) - 1)
    return {
        "global mean, RMSE": errors(np.full(len(ty), mean), ty)["RMSE"],
        "film's mean, RMSE": errors(mean + bias[at], ty)["RMSE"],
    }


def principal_components(splits: Splits) -> dict[str, float]:
    """AUC of the distance to the training windows' mean spectrum, and of what as many principal components leave."""
    network, config = FanVibration(FanConfig()), AutoencoderConfig()
    (x, _), (tx, ty) = splits.train, splits.test
    train, test = (network.spectrum(torch.from_numpy(part)).double().numpy() for part in (x, tx))
    mean = train.mean(0)
    directions = np.linalg.svd(train - mean, full_matrices=False)[2][: config.code]
    off = test - mean
    left = off - off @ directions.T @ directions
    return {
        name: area_under_curve(np.square(part).mean(1), ty > 0)
        for name, part in (("mean spectrum, AUC", off), (f"{config.code} principal components, AUC", left))
    }


def nothing_more(_output: NDArray[Any], _y: NDArray[Any]) -> dict[str, float]:
    """Accuracy says it all."""
    return {}


EXTRAS: Mapping[str, Extra] = {
    "machine_failure": failures,
    "anomaly_autoencoder": anomalies,
    "air_forecast": errors,
    "recommender": errors,
}
BASELINES: Mapping[str, Callable[[Splits], dict[str, float]]] = {
    "air_forecast": persistence,
    "anomaly_autoencoder": principal_components,
    "recommender": means,
}


def _run(case: Case, cache: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return run_case(case, EXTRAS.get(case.model, nothing_more), cache)


def run_cases(cases: Sequence[Case], cache: Path, jobs: int) -> dict[tuple[str, int, str, int], dict[str, Any]]:
    """All of them, `jobs` at once, by (model, bits, variant, seed)."""
    results: dict[tuple[str, int, str, int], dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with Progress(console=Console(stderr=True)) as progress, ProcessPoolExecutor(jobs, spawn) as pool:
        task = progress.add_task("training", total=len(cases))
        running = {pool.submit(_run, case, cache): case for case in cases}
        for done in as_completed(running):
            case = running[done]
            results[case.model, case.bits, case.variant, case.seed] = done.result()
            progress.update(task, advance=1, description=f"{case.model} {case.variant} {case.seed}")
    return results


Seeds = Sequence[Mapping[str, Any]]


def summarise(of: Mapping[str, Seeds], baselines: Mapping[str, float]) -> dict[str, Any]:
    """Means, paired differences and agreement of one model; `of` has the results of each variant, by seed."""
    metrics = next(iter(of.values()))[0]["test"]["trained"]
    values = {
        (variant, kind, metric): [seed["test"][kind][metric] for seed in seeds]
        for variant, seeds in of.items()
        for kind in seeds[0]["test"]
        for metric in metrics
    }
    pairs = {
        "QAT - float": (("qat", "trained"), ("float", "trained")),
        "int8 - float": (("qat", "int8"), ("float", "trained")),
        "int8 - fake-quant": (("qat", "int8"), ("qat", "trained")),
        "federated int8 - pooled int8": (("federated", "int8"), ("qat", "int8")),
    }
    differences = {
        name: {m: _spread([a - b for a, b in zip(values[*one, m], values[*other, m], strict=True)]) for m in metrics}
        for name, (one, other) in pairs.items()
        if one[0] in of and other[0] in of
    }
    return {
        "test": {f"{v} {k}": {m: _spread(values[v, k, m]) for m in metrics} for v, k, m in values},
        "validation": {variant: _spread([seed["validation"] for seed in seeds]) for variant, seeds in of.items()},
        "differences": differences,
        "agreement": {v: _spread([s["agreement"] for s in seeds]) for v, seeds in of.items() if v != "float"},
        "baselines": dict(baselines),
        "runs": {variant: list(seeds) for variant, seeds in of.items()},
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    made = estimate(values)
    assert made is not None
    return {"mean": made.mean, "half_width": made.half_width}


SHARES = ("accuracy", "balanced_accuracy", "AUC", "F1")  # told in percent
NAMES = {
    "float trained": "pooled, float",
    "qat trained": "pooled, fake-quant",
    "qat int8": "pooled, int8",
    "federated trained": "federated, fake-quant",
    "federated int8": "federated, int8",
}


def rows_of(summary: Mapping[str, Any]) -> list[list[str]]:
    """The table of one model: a line a network, then the differences, then agreement and baselines."""
    metrics = list(next(iter(summary["test"].values())))
    table = [["on the test set", *(f"{m}, %" if m in SHARES else m for m in metrics)]]
    for name, title in NAMES.items():
        if name in summary["test"]:
            table.append([title, *(_text(summary["test"][name][m], m) for m in metrics)])
    for name, by_metric in summary["differences"].items():
        table.append([name, *(_text(by_metric[m], m, signed=True) for m in metrics)])
    for variant, share in summary["agreement"].items():
        title = f"{'pooled' if variant == 'qat' else variant}, int8 agrees with fake-quant"
        table.append([title, _text(share, "accuracy"), *("" for _ in metrics[1:])])
    for name, value in summary["baselines"].items():
        table.append([f"baseline: {name}", f"{value:.3f}", *("" for _ in metrics[1:])])
    return table


def _text(value: Mapping[str, float | None], metric: str, *, signed: bool = False) -> str:
    factor, digits = (100, 2) if metric in SHARES else (1, 3)
    mean, half = value["mean"], value["half_width"]
    assert mean is not None
    text = f"{factor * mean:{'+' if signed else ''}.{digits}f}"
    return text if half is None else f"{text} ± {factor * half:.{digits}f}"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as they stand in docs/model-accuracy.md."""
    said, lines = result["setting"], []
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    lines += [f"Made by `{said['command']}` on {said['machine']}; python {said['python']}, {versions}.", ""]
    for title, summary in result["models"].items():
        head, *rows = rows_of(summary)
        lines += [f"### {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", *([f"Training: {summary['why']}", ""] if summary["why"] else [])]
    return "\n".join(lines)


def write(path: Path, text: str, bits: int) -> None:
    """Put the text between the page's two marks for that width. Raises `SystemExit` for a page without them."""
    name = "model-accuracy" if bits == 8 else f"model-accuracy of {bits} bits"
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = path.read_text()
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"{path} has no {first} and {last}")
    path.write_text(f"{before}{first}\n{text}\n{last}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=[m for m in catalog() if m not in NO_MODELS])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 0, 1, ...")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8, help="of the weights")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--cache", type=Path, default=Path("runs/model-accuracy"))
    parser.add_argument("--write", type=Path, help="a page to put the tables into, between the marks for these bits")
    options = parse_arguments(parser)
    models = options.model or [m for m in catalog() if m not in NO_MODELS]
    cases = [
        Case(model, seed, variant, options.bits, SCHEDULES.get(model, Schedule()))
        for model in models
        for seed in range(options.seeds)
        for variant in options.variants
        if variant != "federated" or (EXPERIMENTS / f"{model}.toml").is_file()
    ]
    results = run_cases(cases, options.cache, options.jobs)
    result: dict[str, Any] = {"setting": setting("onnxruntime", "numpy", "torch"), "models": {}}
    for model in models:
        of = {
            v: [results[c.model, c.bits, v, c.seed] for c in cases if (c.model, c.variant) == (model, v)]
            for v in VARIANTS
        }
        baselines = BASELINES[model](load(model).examples()) if model in BASELINES else {}
        summary = summarise({v: seeds for v, seeds in of.items() if seeds}, baselines)
        title = model if options.bits == 8 else f"{model}, weights of {options.bits} bits"
        result["models"][title] = {**summary, "why": SCHEDULES.get(model, Schedule()).why}
    tables = [[[f"[{title}]"], *rows_of(summary)] for title, summary in result["models"].items()]
    print_result(result, [_even(table) for table in tables], options.json)
    if options.write:
        write(options.write, markdown(result), options.bits)
    return 0


def _even(table: list[list[str]]) -> list[list[str]]:
    width = max(map(len, table))
    return [row + [""] * (width - len(row)) for row in table]


if __name__ == "__main__":
    sys.exit(main())
