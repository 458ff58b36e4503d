"""Every bundle that ships is what its source builds, and a device and a gateway can work with it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fl_protocol.bundle import Bundle
from models.build import build
from models.gates import open_session
from models.spec import catalog, load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data"


@pytest.fixture(scope="module", params=catalog())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(name):
    return Bundle.read((SHIPPED / f"{name}.bundle").read_bytes())


@pytest.fixture(scope="module")
def rebuilt(name):
    return Bundle.read(build(load(name)))


def normalised(graph):
    """Nodes and constants of an ONNX file, its inner names replaced by the order of their appearance."""
    proto = onnx.load_from_string(graph).graph
    kept = {value.name for value in (*proto.input, *proto.output)} | {""}
    order = {}

    def name(old):
        return old if old in kept else order.setdefault(old, f"value {len(order)}")

    nodes = []
    for node in proto.node:
        attributes = sorted((a.name, onnx.helper.get_attribute_value(a)) for a in node.attribute)
        nodes.append((node.op_type, [name(n) for n in node.input], [name(n) for n in node.output], attributes))
    return nodes, {name(tensor.name): numpy_helper.to_array(tensor) for tensor in proto.initializer}


def test_no_bundle_ships_without_its_source():
    assert sorted(file.stem for file in SHIPPED.glob("*.bundle")) == sorted(catalog())


def test_a_bundle_builds_to_the_same_bytes_twice(name):
    assert build(load(name)) == build(load(name))


def test_the_shipped_bundle_is_what_its_source_builds(bundle, rebuilt):
    assert rebuilt.layout == bundle.layout
    assert rebuilt.layout.fingerprint == bundle.layout.fingerprint
    assert (rebuilt.hyper, rebuilt.labels, rebuilt.batch_size) == (bundle.hyper, bundle.labels, bundle.batch_size)
    np.testing.assert_allclose(rebuilt.initial, bundle.initial, atol=1e-6)
    assert set(rebuilt.graphs) == set(bundle.graphs)
    for graph in bundle.graphs:
        (nodes, constants), (shipped_nodes, shipped_constants) = (normalised(b.graph(graph)) for b in (rebuilt, bundle))
        assert nodes == shipped_nodes
        assert set(constants) == set(shipped_constants)
        for name, constant in constants.items():
            np.testing.assert_allclose(constant, shipped_constants[name], rtol=1e-6, atol=1e-6)


def test_the_shipped_graphs_give_what_rebuilt_ones_do(bundle, rebuilt):
    rng, examples, classes = np.random.default_rng(0), 50, max(2, len(bundle.labels))
    for graph in bundle.graphs:
        session, shipped = open_session(rebuilt.graph(graph)), open_session(bundle.graph(graph))
        given = {}
        for value in session.get_inputs():
            shape = [examples if size == "batch" else size for size in value.shape]
            if value.type == "tensor(int64)":
                given[value.name] = np.asarray(rng.integers(0, classes, shape))
            else:
                given[value.name] = np.asarray(rng.random(shape) * (1 if value.name == "x" else 0.1), np.float32)
        for ours, theirs in zip(session.run(None, given), shipped.run(None, given), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
