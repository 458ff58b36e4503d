"""Cases of bench_aggregate.py in fresh processes that take turns: the gateway's here, Flower's in its environment."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_protocol.errors import ConfigError

HERE = Path(__file__).resolve().parent
FLOWER = "1.42.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "anabranch" / f"flower-{FLOWER}"
VERSIONS = "import json, numpy, importlib.metadata as m; print(json.dumps([m.version('flwr'), numpy.__version__]))"
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Case = Mapping[str, Any]


class Flower:
    """Flower from PyPI in an environment of its own, made where it is missing."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        if not self.python.exists():
            sys.stderr.write(f"installing flwr {FLOWER} into {folder}\n")
            self._run([sys.executable, "-m", "venv", str(folder)])
        if self._versions() is None:
            self._run([str(self.python), "-m", "pip", "install", "--quiet", f"flwr=={FLOWER}"])
        versions = self._versions()
        if versions is None:
            raise ConfigError(f"no Flower in {folder}", "remove the folder and try again, or use --no-flower")
        self.version, self.numpy = versions

    def _versions(self) -> tuple[str, str] | None:
        found = subprocess.run([self.python, "-c", VERSIONS], capture_output=True, text=True, check=False)
        return tuple(json.loads(found.stdout)) if found.returncode == 0 else None

    @staticmethod
    def _run(command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"{' '.join(command)} failed: {done.stderr[-500:]}", "is PyPI there? else --no-flower")


def run_case(case: Case, flower: Flower | None) -> dict[str, Any]:
    """One process, one thread; what it answered. Raises `RuntimeError` with its last words."""
    module = "aggregate_flower" if case["side"] == "flower" else "aggregate_ours"
    python = str(flower.python) if flower and case["side"] == "flower" else sys.executable
    command = [python, "-c", f"import {module}; {module}.main()", json.dumps(dict(case))]
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def take_turns(cases: Mapping[str, Case], runs: int, flower: Flower | None) -> dict[str, dict[str, Any]]:
    """Every case in `runs` processes, all cases once before any comes again; times of all, and the largest peaks."""
    found: dict[str, dict[str, Any]] = {}
    for run in range(runs):
        for name, case in cases.items():
            sys.stderr.write(f"run {run + 1} of {runs}: {name}\n")
            answer = run_case(case, flower)
            if name not in found:
                found[name] = answer
                continue
            so_far = found[name]
            for turn, times in answer["ms"].items():
                so_far["ms"][turn] += times
            for peak in ("before_mb", "peak_mb"):
                so_far[peak] = max(so_far[peak], answer[peak])
    return found
