"""What a release costs the gateway: every rule on 100 updates of a million parameters, and Flower on the same ones.

Each case is a fresh process with one thread, and cases take turns; what counts is the processor's time, which other
programs disturb least. A rule's time is compared with a bare pass of np.add over the same vectors, in the same process
turn by turn, and with Flower's own functions (flwr.server.strategy.aggregate), which it gets from PyPI into an
environment outside of the checkout. Memory is the peak (VmHWM) of the process during the rule's first turn. `--write`
puts the tables into docs/bench-aggregate.md. Ends with 1 when a target is missed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from aggregate_processes import CACHE, Case, Flower, take_turns
from aggregate_tables import PAGE, tables, targets, write_page
from figures import parse_arguments, print_result, setting

from fl_protocol.errors import ConfigError

RULES = (
    "mean",
    "clip+mean",
    "nova+mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "bulyan",
    "geometric-median",
    "centred-clipping",
    "fltrust",
    "arc+nnm+trimmed-mean",
)
QUICK_RULES = ("mean", "median", "krum")
WITHOUT_F = ("mean", "median", "geometric-median", "centred-clipping", "fltrust")
PAIRED = ("mean", "median", "trimmed-mean", "krum", "multi-krum")  # what Flower has, too
FLOAT32: dict[str, str] = {"name": "none"}
SPARSE = {"name": "topk", "share": "0.01"}
CODECS = (
    FLOAT32,
    {"name": "float16"},
    {"name": "qsgd", "bits": "8"},
    {"name": "uq", "step": "1.0"},
    {"name": "uq", "step": "3.0"},
    SPARSE,
    {"name": "ternary", "share": "0.01"},
    {"name": "threshold", "level": "2.5"},
    {"name": "randomk", "share": "0.01"},
)
BULYAN_PART = 10  # of the parameters: its 60 rounds of Krum take Flower minutes


def rule_of(name: str, f: int) -> dict[str, str]:
    """A plan's settings of the rule."""
    told = {"f": str(f)} if name.split("+")[-1] not in WITHOUT_F else {}
    return {"name": name, **told, **({"trusted": "d0"} if name == "fltrust" else {})}


def codec_name(codec: dict[str, str] | None) -> str:
    """Its settings in a few words."""
    if codec is None:
        return "vectors"
    return " ".join([codec["name"], *(f"{key} {value}" for key, value in codec.items() if key != "name")])


def cases(options: argparse.Namespace, *, with_flower: bool) -> dict[str, Case]:
    """All of them by name: side / rule / what it begins with."""
    f = options.updates // 5
    common = {"updates": options.updates, "f": f, "equal": True, "seconds": options.seconds, "least": options.least}
    found: dict[str, Case] = {}

    def ours(name: str, codec: dict[str, str] | None, size: int = options.size, **other: Any) -> None:
        key = f"ours/{name}{other.pop('label', '')}/{codec_name(codec)}"
        found[key] = common | {"side": "ours", "rule": rule_of(name, f), "codec": codec, "size": size} | other

    for name in QUICK_RULES if options.quick else RULES:
        for codec in (None, FLOAT32, SPARSE):
            ours(name, codec)
    ours("mean", None, label=", unequal", equal=False)
    for codec in CODECS:
        ours("mean", codec)
    if with_flower:
        for name in PAIRED:
            if f"ours/{name}/vectors" not in found:
                continue
            for start in ("arrays", "bytes"):
                flower = common | {"side": "flower", "rule": name, "from": start, "size": options.size}
                found[f"flower/{name}/{start}"] = flower
        found["flower/mean in place/bytes"] = {**found["flower/mean/bytes"], "rule": "mean in place"}
        if not options.quick:
            size = options.size // BULYAN_PART
            ours("bulyan", None, size, label=", tenth")
            tenth = common | {"side": "flower", "rule": "bulyan", "from": "arrays", "size": size, "least": 1}
            found["flower/bulyan, tenth/arrays"] = tenth | {"seconds": 0}
    return found


def disagreements(found: dict[str, dict[str, Any]]) -> list[str]:
    """Rules whose numbers are not Flower's: then the times would compare nothing."""
    wrong = []
    for name, answer in found.items():
        side, rule, _ = name.split("/")
        other = found.get(f"ours/{rule}/vectors")
        if side == "flower" and other:
            theirs, mine = np.array(answer["sample"]), np.array(other["sample"])
            apart = float(np.abs(theirs - mine).max() / max(1e-30, np.abs(theirs).max()))
            if apart > 1e-4:
                wrong.append(f"{name}: {apart:.1e} apart")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100, help="of a buffer; a fifth are assumed to be hostile")
    parser.add_argument("--size", type=int, default=1_000_000, help="parameters")
    parser.add_argument("--runs", type=int, default=3, help="processes of each case")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a process, after its first turn")
    parser.add_argument("--least", type=int, default=2, help="turns of a process, after its first")
    parser.add_argument("--flower-venv", type=Path, default=CACHE, help="where Flower's environment is, or is made")
    parser.add_argument("--flower", action=argparse.BooleanOptionalAction, default=True, help="compare with Flower")
    parser.add_argument("--quick", action="store_true", help="three rules on 20 updates of 100,000: is all in order?")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parse_arguments(parser)
    if options.quick:
        options.updates, options.size, options.runs, options.seconds = 20, 100_000, 1, 0.1
    flower = Flower(options.flower_venv) if options.flower else None
    found = take_turns(cases(options, with_flower=flower is not None), options.runs, flower)
    said = setting("numpy")
    if flower:
        said["versions"] |= {"flwr": flower.version, "its numpy": flower.numpy}
    result = {
        "setting": said,
        "updates": options.updates,
        "size": options.size,
        "cases": {name: {key: value for key, value in a.items() if key != "sample"} for name, a in found.items()},
        "disagreements": disagreements(found),
        "targets": targets(found),
    }
    print_result(result, tables(result), options.json)
    if options.write:
        write_page(result)
    for line in result["disagreements"]:
        sys.stderr.write(f"not Flower's numbers: {line}\n")
    missed = [row["target"] for row in result["targets"] if not row["met"]]
    if missed and not options.quick:
        sys.stderr.write("".join(f"missed: {target}\n" for target in missed))
    return 1 if result["disagreements"] or (missed and not options.quick) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
