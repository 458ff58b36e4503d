"""Makes `anabranch/data/fan_baselines.json`, which `anabranch demo --quick` reads instead of training the comparisons.

The same code as the demo's own comparison (`anabranch/demo/comparison.py`) with the default plan's budget of steps, for
several seeds; accuracies are means over them.
"""

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from figures import parse_arguments, print_result, setting

from anabranch.datasets.fan_vibration import SPEEDS, load_fan
from anabranch.demo.comparison import Comparison, compare_live
from anabranch.demo.folder import PLAN, VERSIONS
from fl_protocol.bundle import Bundle
from fl_protocol.durable import write_durably
from fl_protocol.messages import Plan

DATA = files("anabranch") / "data"
OUTPUT = Path(str(DATA)) / "fan_baselines.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, 0, 1, ...")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file to write")
    options = parse_arguments(parser)
    data = (DATA / "fan_vibration.bundle").read_bytes()
    bundle = Bundle.read(data)
    plan = Plan(
        task="baselines",
        revision=1,
        state="created",
        bundle_sha256=bundle.sha256,
        bundle_size=len(data),
        fingerprint=bundle.layout.fingerprint,
        batch_size=bundle.batch_size,
        hyper=dict(PLAN.get("hyper", {})),
    )
    steps = demo_steps(bundle.batch_size)
    runs = []
    for seed in range(options.seeds):
        runs.append(compare_live(bundle, plan, SPEEDS, steps, seed))
        print(f"seed {seed}: pooled {runs[-1].pooled_mean:.4f}, alone {runs[-1].alone_mean:.4f}", file=sys.stderr)
    page = {
        "made_by": f"python benchmarks/fan_baselines.py --seeds {options.seeds}",
        "what": "accuracy of int8 models on the last 15 s of each recording; mean over the seeds",
        "seeds": list(range(options.seeds)),
        "bundle_sha256": bundle.sha256,
        "pooled_steps": runs[0].pooled_steps,
        "alone_steps": runs[0].alone_steps,
        "pooled": {fan: round(fmean(r.pooled[fan] for r in runs), 6) for fan in SPEEDS},
        "alone": {fan: {on: round(fmean(r.alone[fan][on] for r in runs), 6) for on in SPEEDS} for fan in SPEEDS},
    }
    write_durably(options.output, json.dumps(page, indent=1).encode() + b"\n")
    result = {"setting": setting("onnxruntime", "numpy"), **page}
    print_result(result, [table(runs)], options.json)
    return 0


def demo_steps(batch_size: int) -> int:
    """Steps that the demo's federation spends: versions x buffer x steps of one update."""
    examples = len(load_fan(SPEEDS[0]).train[0])
    return VERSIONS * (len(SPEEDS) // 2) * int(PLAN["local_epochs"]) * -(-examples // batch_size)


def table(runs: list[Comparison]) -> list[list[str]]:
    """One row a seed."""
    heads = ["seed", "pooled", "alone, all fans", "alone, own fan"]
    rows = [
        [str(s), *(f"{v:.4f}" for v in (r.pooled_mean, r.alone_mean, r.alone_own_mean))] for s, r in enumerate(runs)
    ]
    return [heads, *rows]


if __name__ == "__main__":
    sys.exit(main())
