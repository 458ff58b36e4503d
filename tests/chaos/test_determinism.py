"""One seed is one run, to the last bit: whichever process it runs in, and however that hashes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.storms import CHAOS_FILE, FIRST_SEED

HASH_SEEDS = ("0", "1", "4294967295", "random")
REAL = """
name = "real"
bundle = "fan_vibration"
[plan]
buffer = 2
[data]
source = "fan_vibration"
[fleet]
devices = 3
slowness_spread = 1.0
[training]
real = true
[stop]
versions = 4
[faults]
storm_s = 20.0
count = [2, 4]
"""


def runs(experiment: Path, seeds: str, hash_seed: str) -> list[dict]:
    """What a process of its own prints of these seeds, but for how long they took."""
    command = [sys.executable, "-m", "anabranch", "simulate", str(experiment), "--seeds", seeds, "--check", "--json"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [run | {"wall_s": 0.0} for run in json.loads(done.stdout)["runs"]]


@pytest.mark.parametrize("kind", ["chaos", "real training"])
def test_a_seed_gives_the_same_run_in_every_process(kind: str, tmp_path: Path) -> None:
    """The same trace, the same parameters, and the same figures, under every PYTHONHASHSEED."""
    experiment = CHAOS_FILE
    if kind == "real training":
        experiment = tmp_path / "real.toml"
        experiment.write_text(REAL)
    seeds = f"{FIRST_SEED}:{FIRST_SEED + 3}"
    first, *others = (runs(experiment, seeds, hash_seed) for hash_seed in HASH_SEEDS)
    assert sum(run["versions"] for run in first) > 2
    assert len({run["trace_sha256"] for run in first}) == len({run["parameters_sha256"] for run in first}) == 3
    for hash_seed, other in zip(HASH_SEEDS[1:], others, strict=True):
        assert other == first, f"PYTHONHASHSEED={hash_seed}"
