"""What fresh processes and an installation cost, the agent's and torch's side by side: memory, imports, disk."""

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np
from figures import spread
from footprint import weigh

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {"agent": "import numpy, onnxruntime, edge_agent.trainer", "torch": "import torch"}
AGENT = """
import sys, numpy as np
import edge_agent.__main__
from edge_agent.sources import Dataset, Examples
from edge_agent.trainer import OnnxTrainer, WorkOrder
from fl_protocol.bundle import Bundle
bundle = Bundle.read(open(sys.argv[1], "rb").read())
with np.load(sys.argv[2]) as file:
    examples = Examples(file["x"], file["y"])
order = WorkOrder(32, 1000, int(sys.argv[3]), bundle.hyper)
dataset = Dataset(examples, examples[:64], examples.x[:1])
OnnxTrainer(bundle).train(bundle.initial, dataset, order, bundle.personal, np.random.default_rng(0), lambda: False)
"""
TORCH = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/benchmarks"]
import numpy as np, torch
torch.set_num_threads(1)
from native_quantization import native_module, torch_step
from models.spec import load
spec = load(sys.argv[1])
module = native_module(spec, quantized=True)
with np.load(sys.argv[2]) as file:
    turn = torch_step(spec, module, file["x"][:32], file["y"][:32])
for _ in range(int(sys.argv[3])):
    turn()
"""
PEAK = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def peak_memory(name: str, bundle: bytes, x: Any, y: Any, steps: int) -> dict[str, float]:
    """Peak megabytes (2^20 bytes) of a process that trains the model `name`, by side; batches of 32."""
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        file, examples = Path(folder) / "a.bundle", Path(folder) / "examples.npz"
        file.write_bytes(bundle)
        np.savez(examples, x=x, y=y)
        agent = _output(AGENT + PEAK, str(file), str(examples), str(steps))
        other = _output(TORCH.format(root=str(ROOT)) + PEAK, name, str(examples), str(steps))
    return {"agent": int(agent) / 1024, "torch": int(other) / 1024}


def import_times(runs: int) -> dict[str, dict[str, float]]:
    """Seconds until what trains is imported, in fresh processes that take turns; the first of each is not counted."""
    script = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for run in range(max(1, runs) + 1):
        for name, what in IMPORTS.items():
            seconds = float(_output(script.format(what)))
            if run:
                found[name].append(seconds)
    return {name: spread(values) for name, values in found.items()}


def installed_mb() -> dict[str, float]:
    """Megabytes (10^6 bytes) of a device's packages here, and of torch's with numpy, without what both need."""
    weights = weigh(Path(np.__file__).parents[1])
    by_name = {name.lower().replace("_", "-"): size for name, (_, size) in weights.items()}

    def closure(*names: str) -> set[str]:
        found, waiting = set[str](), list(names)
        while waiting:
            name = waiting.pop().lower().replace("_", "-")
            if name in found:
                continue
            try:
                needs = requires(name) or []
            except PackageNotFoundError:  # for another platform
                continue
            found.add(name)
            plain = (need for need in needs if "extra ==" not in need)
            waiting += [need.split(";")[0].strip().split("[")[0].rstrip("<>=!~0123456789.,() ") for need in plain]
        return found

    wanted = {
        "agent": ("onnxruntime", "numpy", "msgpack", "msgspec", "paho-mqtt", "cryptography"),
        "torch": ("torch", "numpy"),
    }
    return {side: sum(by_name.get(name, 0) for name in closure(*names)) / 1e6 for side, names in wanted.items()}


def _output(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
