"""Gates on the bundle's files: the manifest, the operators, the size."""

from collections import Counter
from collections.abc import Iterator

import onnx

from fl_protocol.onnx_file import STANDARD_DOMAINS
from models.gates.bench import Bench, Gate

# Bytes of all five graphs together: each may store every value, and each node is a name, two inputs and an attribute.
_BYTES_A_VALUE, _BYTES_A_NODE, _BYTES_BESIDE = 32, 200, 64 << 10
MAX_NODES = 6000  # of the training graph: 12 to 30 ms a step for calling them alone


def layout_gate(bench: Bench) -> Iterator[Gate]:
    """The bundle's layout is the model's."""
    layout, expected = bench.bundle.layout, bench.step.layout
    yield Gate(
        "manifest",
        f"layout {layout.fingerprint}, {len(bench.bundle.graphs)} graphs, hashes verified",
        f"layout {expected.fingerprint}",
        layout == expected,
    )


def operators_gate(bench: Bench) -> Iterator[Gate]:
    """Standard operators only."""
    used: Counter[str] = Counter()
    foreign = set()
    for graph in bench.bundle.graphs.values():
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        used.update(node.op_type for node in model.graph.node)
        domains = {node.domain for node in model.graph.node} | {opset.domain for opset in model.opset_import}
        foreign |= domains - set(STANDARD_DOMAINS)
    yield Gate("operators", f"{len(used)} kinds, foreign domains: {sorted(foreign) or 'none'}", "ai.onnx", not foreign)


def size_gate(bench: Bench) -> Iterator[Gate]:
    """Bytes for what the graphs store and for their nodes, and a training graph that is not all nodes."""
    bundle, step = bench.bundle, bench.step
    nodes = {name: len(onnx.load_from_string(graph).graph.node) for name, graph in bundle.graphs.items()}
    values = sum(tensor.numel() for tensor in (step.trained | step.constants).values())
    allowed = _BYTES_BESIDE + _BYTES_A_VALUE * values + _BYTES_A_NODE * sum(nodes.values())
    size = sum(len(graph) for graph in bundle.graphs.values())
    listed = ", ".join(f"{name} {len(graph):,}" for name, graph in bundle.graphs.items())
    yield Gate(
        "size of the graphs",
        f"{size:,} bytes ({listed}), {nodes['train']:,} nodes in train",
        f"{allowed:,} bytes, {MAX_NODES:,} nodes",
        size <= allowed and nodes["train"] <= MAX_NODES,
    )
