"""The figures of bench_aggregate.py as tables, its targets, and its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from figures import spread

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bench-aggregate.md"
BEGIN, END = "<!-- bench-aggregate -->", "<!-- /bench-aggregate -->"
FLOAT32, SPARSE = "none", "topk share 0.01"

Found = Mapping[str, Mapping[str, Any]]
Table = list[list[object]]


def milliseconds(found: Found, name: str, turn: str = "rule") -> float:
    """The median of a case's turns."""
    return float(np.median(found[name]["ms"][turn]))


def with_spread(found: Found, name: str) -> str:
    """Median and half the distance of the quartiles."""
    if name not in found:
        return "-"
    s = spread(found[name]["ms"]["rule"])
    half = (s["q3"] - s["q1"]) / 2
    digits = 1 if s["median"] < 100 else 0
    return f"{s['median']:.{digits}f} ± {half:.{digits}f}"


def over_bare_pass(found: Found, name: str) -> float:
    """A rule's time over that of np.add in the same processes."""
    return milliseconds(found, name) / milliseconds(found, name, "np.add")


def peak(found: Found, name: str) -> str:
    """Of the process, and in brackets what came on top of the updates."""
    if name not in found:
        return "-"
    case = found[name]
    return f"{case['peak_mb']:.0f} (+{on_top(case):.0f})"


def on_top(case: Mapping[str, Any]) -> float:
    """What the process's peak is above what it held before, in MB."""
    return float(case["peak_mb"] - case["before_mb"])


def rules(found: Found) -> Table:
    """Every rule of ours: time on vectors, on float32 payloads and on sparse ones, and peaks."""
    heads = ["rule", "vectors, ms", "/ np.add", "float32, ms", "peak, MB", "1 %, ms", "peak, MB"]
    table: Table = [list(heads)]
    for name in found:
        side, rule, start = name.split("/")
        if side != "ours" or start != "vectors" or rule.endswith("tenth"):
            continue
        dense, sparse = (f"ours/{rule}/{codec}" for codec in (FLOAT32, SPARSE))
        cells = [with_spread(found, name), f"{over_bare_pass(found, name):.2f}"]
        cells += [with_spread(found, dense), peak(found, dense), with_spread(found, sparse), peak(found, sparse)]
        table.append([rule, *cells])
    return table


def codecs(found: Found) -> Table:
    """FedAvg with decoding, codec by codec."""
    table: Table = [["mean of updates in", "bytes each", "ms", "/ 1 %", "peak, MB"]]
    least = f"ours/mean/{SPARSE}"
    for name, case in found.items():
        side, rule, codec = name.split("/")
        if side == "ours" and rule == "mean" and codec != "vectors":
            over = milliseconds(found, name) / milliseconds(found, least)
            cells = [f"{case['bytes']:.0f}", with_spread(found, name), f"{over:.1f}", peak(found, name)]
            table.append([codec, *cells])
    return table


def against_flower(found: Found) -> Table:
    """Pairs that begin with the same: decoded arrays, or what the server receives."""
    heads = ["rule", "from", "ours, ms", "Flower, ms", "times faster", "ours, peak MB", "Flower, peak MB", "of it"]
    table: Table = [list(heads)]
    for name, case in found.items():
        side, rule, start = name.split("/")
        mine = our_case(name)
        if side == "flower" and mine in found:
            faster = milliseconds(found, name) / milliseconds(found, mine)
            share = found[mine]["peak_mb"] / case["peak_mb"]
            times = [with_spread(found, mine), with_spread(found, name), f"{faster:.1f}"]
            table.append([rule, start, *times, peak(found, mine), peak(found, name), f"{share:.2f}"])
    return table if len(table) > 1 else []


def our_case(flowers: str) -> str:
    """What begins with the same, does the same."""
    _, rule, start = flowers.split("/")
    return f"ours/{rule.removesuffix(' in place')}/{'vectors' if start == 'arrays' else FLOAT32}"


def targets(found: Found) -> list[dict[str, Any]]:
    """The issue's, as far as their cases were measured."""
    rows: list[dict[str, Any]] = []

    def add(target: str, measured: float, limit: float, *, most: bool) -> None:
        met = measured <= limit if most else measured >= limit
        rows.append({"target": target, "measured": measured, "met": bool(met)})

    for label in ("", ", unequal"):
        name = f"ours/mean{label}/vectors"
        if name in found:
            kind = "different" if label else "equal"
            ratio = over_bare_pass(found, name)
            add(f"the mean of {kind} factors takes at most 1.2 bare passes of np.add", ratio, 1.2, most=True)
    for rule in ("median", "krum"):
        for start in ("arrays", "bytes"):
            name = f"flower/{rule}/{start}"
            if name in found:
                faster = milliseconds(found, name) / milliseconds(found, our_case(name))
                add(f"{rule} from {start} is 3 times faster than Flower's", faster, 3, most=False)
                mine, theirs = found[our_case(name)], found[name]
                if start == "bytes":
                    share = mine["peak_mb"] / theirs["peak_mb"]
                    add(f"{rule} from bytes peaks at a third of Flower's memory", share, 1 / 3, most=True)
                else:  # the arrays themselves, 400 MB, are the same on both sides
                    share = on_top(mine) / on_top(theirs)
                    add(f"{rule} adds to the arrays a third of what Flower adds", share, 1 / 3, most=True)
    for codec in (FLOAT32, "float16", "qsgd bits 8"):
        dense, sparse = f"ours/mean/{codec}", f"ours/mean/{SPARSE}"
        if dense in found and sparse in found:
            faster = milliseconds(found, dense) / milliseconds(found, sparse)
            add(f"updates of 1 % are averaged 10 times faster than those in {codec}", faster, 10, most=False)
    return rows


def tables(result: Mapping[str, Any]) -> list[Table]:
    """All, the targets first."""
    found = result["cases"]
    met: Table = [["target", "measured", "met"]]
    met += [[row["target"], f"{row['measured']:.2f}", "yes" if row["met"] else "no"] for row in result["targets"]]
    return [table for table in (met, rules(found), against_flower(found), codecs(found)) if len(table) > 1]


def write_page(result: Mapping[str, Any]) -> None:
    """Put the tables between the page's marks; what stands around them stays."""
    said = result["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    text = [f"`{said['command']}`; {result['updates']} updates of {result['size']:,} parameters; {said['machine']};"]
    text[0] += f" python {said['python']}, {versions}"
    for table in tables(result):
        head, *body = ([str(cell) for cell in row] for row in table)
        marks = ["---" if i == 0 else "---:" for i in range(len(head))]
        text.append("\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *body)))
    page = PAGE.read_text("utf-8") if PAGE.exists() else "# What a release costs\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2].lstrip("\n")
    whole = before.rstrip() + f"\n\n{BEGIN}\n" + "\n\n".join(text) + f"\n{END}\n" + (f"\n{after}" if after else "")
    PAGE.write_text(whole, "utf-8")
