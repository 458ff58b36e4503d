"""What training costs a device, model by model: the agent's onnxruntime against torch.

Time of a step: the bundle's graph as `edge_agent` runs it against eager torch (its own layers, optimizer and fake
quantization: native_quantization.py) and torch.compile; fake-quantized and in float; batches of 16 and 32, one thread
and two. All contenders take turns in short blocks, so that whatever else the machine does falls on all of them; what
counts are ratios: of blocks' medians, with quartiles, and of the fastest steps, which a busy machine spares most (it
interrupts long steps more often than short ones, so there its medians flatter the agent). Memory (VmHWM) and imports
are those of fresh processes, sizes those of the packages installed here. `--write` puts the tables into
docs/bench-train.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import parse_arguments, print_result, setting, spread
from fresh_processes import IMPORTS, import_times, installed_mb, peak_memory

from edge_agent.runtime import StepLoop, open_session
from fl_protocol.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the workshop is not installed: it lives in the checkout

from native_quantization import Turn, native_module, torch_step  # noqa: E402

from models.build import build, compile_graphs  # noqa: E402
from models.spec import ModelSpec, catalog, load  # noqa: E402
from models.step import Step  # noqa: E402

BATCHES, THREADS = (16, 32), (1, 2)
BLOCK = 10  # timed steps of one contender before it is the next one's turn
WARM = 2  # steps before each block: the caches are another's
PAGE = ROOT / "docs" / "bench-train.md"
BEGIN, END = "<!-- bench-train -->", "<!-- /bench-train -->"


def agent_step(bundle: Bundle, graph: bytes, step: Step, x: Any, y: Any, threads: int) -> Turn:
    """A step as the agent takes it."""
    state = {name: tensor.detach().numpy() for name, tensor in step.entries.items()}
    fixed = {name: np.asarray(value, np.float32) for name, value in bundle.hyper.items()}
    if "base" in bundle.feeds:
        fixed |= {f"{name}.base": tensor.detach().numpy() for name, tensor in step.parameters.items()}
    loop = StepLoop(open_session(graph, threads), state, fixed)
    rng, seeded = np.random.default_rng(0), "seed" in bundle.feeds

    def turn() -> None:
        seed = {"seed": np.asarray(rng.integers(1 << 63), np.int64)} if seeded else {}
        loop.step({"x": x, "y": y, **seed})

    return turn


def take_turns(turns: dict[str, Turn], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each step; every contender gets about `seconds`."""
    for turn in turns.values():
        for _ in range(3):
            turn()
    times: dict[str, list[float]] = {name: [] for name in turns}
    until = time.perf_counter() + seconds * len(turns)
    while time.perf_counter() < until or min(map(len, times.values())) < 2 * BLOCK:
        for name, turn in turns.items():
            for _ in range(WARM):
                turn()
            for _ in range(BLOCK):
                started = time.perf_counter()
                turn()
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def ratio(times: dict[str, list[float]], other: str, ours: str = "agent") -> dict[str, float]:
    """Ours over the other's, of the medians of neighbouring blocks."""
    blocks = {name: np.median(np.reshape(times[name], (-1, BLOCK)), 1) for name in (ours, other)}
    fastest = min(times[ours]) / min(times[other])
    return {**spread((blocks[ours] / blocks[other]).tolist()), "fastest": fastest}


class Model:
    """One model of the catalog, compiled both ways, with a batch of its own examples."""

    def __init__(self, name: str) -> None:
        self.spec: ModelSpec = load(name)
        self.data = build(self.spec)
        self.bundle = Bundle.read(self.data)
        self.steps = {True: Step(self.spec), False: Step(self.spec, quantized=False)}
        self.graphs = {
            True: self.bundle.graph("train"),
            False: compile_graphs(self.steps[False], ("train",))["train"],
        }
        x, y = self.spec.examples().train
        rows = np.random.default_rng(0).permutation(len(x))[:512]
        self.x, self.y = np.ascontiguousarray(x[rows]), np.ascontiguousarray(y[rows])

    def times(self, batch: int, threads: int, seconds: float, *, compiled: bool) -> dict[str, Any]:
        """Milliseconds a step and ratios, with fake quantization and in float."""
        torch.set_num_threads(threads)
        x, y = self.x[:batch], self.y[:batch]
        found: dict[str, Any] = {"batch": batch, "threads": threads}
        for kind, quantized in (("qat", True), ("float", False)):
            turns = {
                "agent": agent_step(self.bundle, self.graphs[quantized], self.steps[quantized], x, y, threads),
                "torch": torch_step(self.spec, native_module(self.spec, quantized=quantized), x, y),
            }
            missing = ""
            if compiled:
                try:
                    turns["compiled"] = compiled_step(self.spec, x, y, quantized=quantized)
                except Exception as error:  # torch.compile raises what its many parts raise
                    missing = f"not available: {str(error).strip().splitlines()[0][:120]}"
            times = take_turns(turns, seconds)
            others = [name for name in turns if name != "agent"]
            found[kind] = {
                "milliseconds": {name: spread(values) for name, values in times.items()},
                "agent_over": {name: ratio(times, name) for name in others},
                "not_available": missing,
            }
        return found


def compiled_step(spec: ModelSpec, x: Any, y: Any, *, quantized: bool) -> Turn:
    """The torch step with its module compiled, after the first step has compiled it."""
    torch._dynamo.reset()  # noqa: SLF001  what other models left is in the way
    turn = torch_step(spec, torch.compile(native_module(spec, quantized=quantized)), x, y)
    turn()
    return turn


def tables(result: dict[str, Any]) -> list[list[list[object]]]:
    """Steps, and what is beside them."""
    steps: list[list[object]] = [
        [
            "model",
            "batch",
            "threads",
            "kind",
            "agent, ms",
            "torch, ms",
            "agent / torch",
            "quartiles",
            "fastest",
            "agent / compiled",
        ]
    ]
    for name, model in result["models"].items():
        for row in model["steps"]:
            for kind in ("qat", "float"):
                one = row[kind]
                ms, over = one["milliseconds"], one["agent_over"]
                compiled = f"{over['compiled']['fastest']:.2f}" if "compiled" in over else one["not_available"] or "-"
                quartiles = f"{over['torch']['q1']:.2f} .. {over['torch']['q3']:.2f}"
                cells = (f"{ms['agent']['median']:.3f}", f"{ms['torch']['median']:.3f}")
                median = f"{over['torch']['median']:.2f}"
                fastest = f"{over['torch']['fastest']:.2f}"
                steps.append([name, row["batch"], row["threads"], kind, *cells, median, quartiles, fastest, compiled])
    memory: list[list[object]] = [["peak memory, MB", "agent", "torch"]]
    memory += [[n, *(f"{m['memory_mb'][s]:.0f}" for s in IMPORTS)] for n, m in result["models"].items()]
    imports, sizes = result["import_seconds"], result["installed_mb"]
    around: list[list[object]] = [["", "agent", "torch"]]
    around.append(["import, s, median", *(f"{imports[side]['median']:.2f}" for side in IMPORTS)])
    around.append(["installed, MB", *(f"{sizes[side]:.0f}" for side in IMPORTS)])
    return [steps, memory, around]


def write_page(result: dict[str, Any]) -> None:
    """Put the tables between the page's marks; a page without them gets them at its end."""
    said = result["setting"]
    text = [f"`{said['command']}`; {said['machine']}; " + ", ".join(f"{k} {v}" for k, v in said["versions"].items())]
    for table in tables(result):
        head, *rows = (["" if cell is None else str(cell) for cell in row] for row in table)
        marks = ["---" if i == 0 else "---:" for i in range(len(head))]
        text.append("\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows)))
    page = PAGE.read_text("utf-8") if PAGE.exists() else "# What training costs\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before.rstrip() + f"\n\n{BEGIN}\n" + "\n\n".join(text) + f"\n{END}\n" + after.lstrip("\n"), "utf-8")


def measure(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """All of it, model by model; progress on standard error."""
    models: dict[str, Any] = {}
    for name in names:
        sys.stderr.write(f"{name}\n")
        model = Model(name)
        steps = [
            model.times(batch, threads, options.seconds, compiled=options.compile and threads == 1)
            for threads in options.threads
            for batch in BATCHES
        ]
        models[name] = {
            "parameters": model.bundle.layout.num_parameters,
            "steps": steps,
            "memory_mb": peak_memory(name, model.data, model.x, model.y, options.memory_steps),
        }
    return {
        "setting": setting("torch", "onnxruntime", "numpy"),
        "models": models,
        "import_seconds": import_times(options.imports),
        "installed_mb": installed_mb(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", action="append", help="a model of the workshop, again for more; all of them unless told"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each setting")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="of onnxruntime and of torch")
    parser.add_argument("--memory-steps", type=int, default=50, help="steps of the processes whose memory is read")
    parser.add_argument("--imports", type=int, default=10, help="fresh processes that import")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parse_arguments(parser)
    result = measure(options.model or catalog(), options)
    print_result(result, tables(result), options.json)
    if options.write:
        write_page(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
