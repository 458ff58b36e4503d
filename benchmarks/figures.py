"""What every benchmark says beside its figures: the command, the versions, the machine; and how figures spread."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The script's options, with `--json` among them."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def setting(*packages: str) -> dict[str, Any]:
    """Where the figures come from: the command as typed, the machine, and the versions of `packages` here."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of a measurement that was repeated."""
    low, quarter, median, three_quarters, high = np.quantile(np.asarray(values, float), [0, 0.25, 0.5, 0.75, 1])
    named = {"median": median, "q1": quarter, "q3": three_quarters, "min": low, "max": high}
    return {**{name: float(value) for name, value in named.items()}, "n": len(values)}


def print_result(result: Mapping[str, Any], tables: Sequence[Sequence[Sequence[object]]], as_json: bool) -> None:
    """`result` as JSON, or its setting and then the tables: rows of cells, the first row the heads."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    said = result["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    print(f"$ {said['command']}\n{said['machine']}; python {said['python']}{', ' if versions else ''}{versions}")
    for table in tables:
        print()
        rows = [[str(cell) for cell in row] for row in table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *others = zip(row, widths, strict=True)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            print("  ".join(cells).rstrip())


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or "unknown processor")
