"""Bytes: what codecs make of real deltas, and what training costs in accuracy when bytes are saved.

Five parts, all unless `--part` names some:

    codecs     bits a parameter on real deltas of every model, encode and decode speed beside np.copy, one thread
    million    the default codec at a million parameters, in milliseconds, and where the time goes
    training   matched training in the twin: same updates, paired seeds, bytes at the devices' sockets
    every      the same with every codec, on small models
    socket     the twin's bytes held to a real mosquitto's

`--write` puts the tables into docs/choosing-a-codec.md and the plot beside it. Runs of the third part are kept in
`--folder`, and a run that is there is not run again. Needs HAR and Fashion-MNIST: `python -m models data NAME`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one thread

import bytes_codecs as codecs
import bytes_plots
import bytes_socket as sockets
import bytes_training as training
import numpy as np
from bytes_models import SPECS, bundle_of
from figures import parse_arguments, print_result, setting
from pages import as_text, write_page

import anabranch
from fl_protocol.bundle import Bundle
from fl_protocol.compression import CODECS, make_compressor
from models.build import build
from models.spec import ModelSpec, catalog, load

PARTS = ("codecs", "million", "training", "every", "socket")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "choosing-a-codec.md"
PLOT = PAGE.parent / "bytes.png"
SHIPPED = Path(anabranch.__file__).parent / "data"
MILLION = "fashion_mlp_1m"
TARGETS_MS = {"encode": 100.0, "decode": 40.0}  # issue 5
QUICK = {"seeds": 1, "updates": 300, "seconds": 0.2, "versions": 10}

Table = list[list[object]]
Trials = list[training.Trial]

WHOLE = '{ name = "none" }'
FLOAT32 = training.Arm("float32", {"codec": WHOLE, "downlink": WHOLE})
# What is sent by the plan's settings; chosen on validation, seed 100 (see the experiments' files).
UP_100 = training.Arm("uq, 0.27 bits", {"codec": '{ name = "uq", step = 2.0, bits = 0.27 }'})
UP_200 = training.Arm("uq, 0.12 bits", {"codec": '{ name = "uq", step = 2.0, bits = 0.12 }'})
UP_200_CLOTHES = training.Arm("uq, 0.128 bits", {"codec": '{ name = "uq", step = 0.5, bits = 0.128 }'})
UP_60 = training.Arm("uq, 0.28 bits", {"codec": '{ name = "uq", step = 2.0, bits = 0.28 }'})
DELTAS = '{ name = "uq", step = 3.0 }'
DOWN = training.Arm("float32 up, deltas down", {"downlink": DELTAS})


def _both(up: training.Arm) -> training.Arm:
    return training.Arm(f"{up.name} up, deltas down", {**up.plan, "downlink": DELTAS})


ARMS: Mapping[str, Sequence[training.Arm]] = {
    "har_mlp_38k": (FLOAT32, UP_60, _both(UP_60)),
    "har_mlp_200k": (FLOAT32, UP_100, UP_200, DOWN, _both(UP_100)),
    "fashion_mlp_200k": (FLOAT32, UP_100, UP_200_CLOTHES, DOWN, _both(UP_100)),
}


# The default at several rates, and every other codec as its file recommends it.
SETTINGS: Sequence[Mapping[str, str]] = (
    {"name": "none"},
    {"name": "uq", "step": "1.0"},
    {"name": "uq", "step": "2.0"},
    {"name": "uq", "step": "2.0", "bits": "0.27"},
    *(codec.example for name, codec in CODECS.items() if name not in ("none", "uq")),
)
SMALL_MODELS = ("har_mlp_38k", "fan_vibration")  # of which every codec is tried: their runs are short


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(f"{line}\n")


def _spec(name: str) -> ModelSpec:
    return SPECS[name] if name in SPECS else load(name)


def _bundle(name: str, folder: Path) -> Path:
    """Its bundle: one that ships, or built into `folder`."""
    shipped = SHIPPED / f"{name}.bundle"
    return shipped if name not in SPECS and shipped.is_file() else bundle_of(name, folder)


def recorded(name: str, warm: int, versions: int) -> codecs.Recorded:
    """Deltas of the model on its own examples."""
    spec = _spec(name)
    x, y = spec.examples().train
    return codecs.record(Bundle.read(build(spec)), x, y, warm, versions)


def codec_table(names: Sequence[str], settings: Sequence[Mapping[str, str]], seconds: float, versions: int) -> Table:
    """Part one."""
    rows: Table = [
        ["model", "parameters", "codec", "bits", "times fewer", "error", "encode, MB/s", "decode, MB/s",
         "encode / copy", "decode / copy"]
    ]  # fmt: skip
    for name in names:
        deltas = recorded(name, versions, versions)
        costs = {}
        for one in settings:
            say(f"{name}: {codecs.label(one)}")
            costs[codecs.label(one)] = codecs.measure(deltas, one, seconds)
        rows += codecs.codec_rows(name, deltas, costs)
    return rows


def million(seconds: float) -> tuple[Table, Table, bool]:
    """Part two: times of `uq`, its profile, and whether the targets were met."""
    deltas = recorded(MILLION, 3, 2)
    size, rng = deltas.layout.num_parameters, np.random.default_rng(1)
    vector = deltas.by_device[0][-1]
    times: Table = [["codec", "parameters", "bytes", "encode, ms", "fastest", "decode, ms", "fastest"]]
    profiles: Table = [["call", "function", "its own ms", "calls"]]
    met = True
    for settings in ({"name": "uq"}, {"name": "uq", "step": "2.0", "bits": "0.25"}):
        compressor = make_compressor(settings, deltas.layout)
        payload = compressor.compress(vector, rng)
        turns: dict[str, Callable[[], object]] = {
            "encode": partial(compressor.compress, vector, rng),
            "decode": partial(compressor.decompress, payload),
        }
        found = codecs.take_turns(turns, seconds)
        cells = [f"{1e3 * value:.1f}" for name in turns for value in (np.median(found[name]), min(found[name]))]
        times.append([codecs.label(settings), f"{size:,}", f"{len(payload):,}", *cells])
        met &= all(1e3 * float(np.median(found[name])) <= TARGETS_MS[name] for name in turns)
        for name, turn in turns.items():
            profiles += [
                [f"{codecs.label(settings)}, {name}", function, f"{own:.1f}", calls]
                for function, own, calls in codecs.profile(turn)
            ]
    return times, profiles, met


def every_codec() -> list[training.Arm]:
    """An arm a codec, after float32."""
    # Every update is decoded several times in the twin; the range coder's few bytes are seen in the first part.
    quick = [{**settings, **({"coder": "rice"} if "coder" in settings else {})} for settings in SETTINGS]
    others = [settings for settings in quick if settings["name"] != "none"]
    return [FLOAT32, *(training.Arm(codecs.label(s), {"codec": training.inline(s), "downlink": WHOLE}) for s in others)]


def _chosen(arms: Sequence[training.Arm], names: Sequence[str] | None) -> list[training.Arm]:
    """Float32, which all are compared with, and those of `names`; None: all."""
    return [arm for arm in arms if names is None or arm is FLOAT32 or arm.name in names]


def train(options: argparse.Namespace, arms: Mapping[str, Sequence[training.Arm]]) -> tuple[list[Table], Trials]:
    """Parts three and four: tables, and the trials behind them."""
    folder = options.folder / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    trials = {
        name: training.prepare(name, of, seeds, _bundle(name, options.folder), folder, options.updates)
        for name, of in arms.items()
    }
    every = [trial for of in trials.values() for trial in of]
    training.run_missing(every, options.jobs, say)
    rows: Table = []
    equal: list[Table] = []
    for of in trials.values():
        head, *body = training.table(of)
        rows += body if rows else [head, *body]
        equal.append(training.at_equal_bytes(of))
    return [rows, *equal], every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="again for more; all of them unless told")
    parser.add_argument("--model", action="append", help="of the catalog, or a perceptron of bytes_models.py")
    parser.add_argument("--arm", action="append", help="of `training`, by what is sent; float32 is always there")
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 0, 1, ... of training")
    parser.add_argument("--updates", type=int, help="of each run, in place of what the experiments say")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the times of one codec on one model")
    parser.add_argument("--versions", type=int, default=10, help="of recorded deltas, after as many to warm up")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-bytes"), help="where bundles and runs are kept")
    parser.add_argument("--bundles", action="store_true", help="build what the experiments want, and end")
    parser.add_argument("--quick", action="store_true", help="a few minutes: is everything in order?")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parse_arguments(parser)
    if options.quick:
        vars(options).update(QUICK)
    if options.bundles:
        for name in ARMS:
            print(bundle_of(name, options.folder))
        return 0
    parts = options.part or PARTS
    result: dict[str, Any] = {"setting": setting("onnxruntime", "numpy")}
    tables: dict[str, Sequence[Table]] = {}
    if "codecs" in parts:
        names = options.model or [*(["fan_vibration"] if options.quick else catalog()), "har_mlp_200k"]
        tables["codecs"] = [codec_table(names, SETTINGS, options.seconds, options.versions)]
    if "million" in parts:
        times, profiles, result["met"] = million(5 * options.seconds)
        tables["million"] = [times, profiles]
    if "training" in parts:
        arms = {name: _chosen(of, options.arm) for name, of in ARMS.items() if name in (options.model or ARMS)}
        tables["training"], trials = train(options, arms)
        if options.write:
            bytes_plots.plot(trials, PLOT)
    if "every" in parts:
        tables["every"], _ = train(options, {name: every_codec() for name in options.model or SMALL_MODELS})
    if "socket" in parts:
        tables["socket"] = [sockets.socket_rows(*sockets.compare(10 if options.quick else 100))]
    result |= {"tables": tables}
    print_result(result, [table for of in tables.values() for table in of], options.json)
    if options.write:
        texts = {f"bench-bytes {part}": as_text(of, result["setting"]) for part, of in tables.items()}
        write_page(PAGE, texts)
    return 0 if result.get("met", True) else 1


if __name__ == "__main__":
    sys.exit(main())
