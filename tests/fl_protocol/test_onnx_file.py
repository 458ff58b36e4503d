"""Hostile graphs, each built with the onnx package, each refused by our own reading of the file.

Nothing here runs onnxruntime: `fl_protocol` cannot import it, and tests/edge_agent/test_hostile.py shows that an agent
which is sent these bundles never loads it.
"""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from fl_protocol import onnx_file
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.onnx_file import OnnxFile
from fl_protocol.onnx_ops import OPERATORS, OPSET
from tests.support.hostile_bundles import HOSTILE, initializer, plain_graph


def refusal(model: onnx.ModelProto) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        OnnxFile.read(model.SerializeToString())
    return caught.value


def test_the_graph_that_all_others_are_made_of_is_read():
    assert OnnxFile.read(plain_graph().SerializeToString()).num_nodes == 1


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_graph_is_refused_with_a_code_and_what_it_contains(name):
    change, said = HOSTILE[name]
    model = plain_graph()
    change(model)
    error = refusal(model)
    assert error.code == Code.SCHEMA
    assert said in error.message
    assert len(error.message) < 700


def test_more_nodes_than_a_bundle_may_have_are_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_NODES", 3)
    model = plain_graph()
    nodes = [helper.make_node("Relu", ["x"], [f"r{i}"]) for i in range(3)]
    model.graph.node.extend(nodes[:2])
    assert OnnxFile.read(model.SerializeToString()).num_nodes == 3
    model.graph.node.extend(nodes[2:])
    assert "more than 3 nodes" in refusal(model).message


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9))
def test_dimensions_that_overflow_are_refused_whatever_their_product(dims):
    """Python's integers do not wrap round: 2**32 x 2**32 is not 0 here."""
    model = plain_graph()
    model.graph.initializer.append(initializer("big", (), b""))
    model.graph.initializer[-1].dims.extend(dims)
    try:
        read = OnnxFile.read(model.SerializeToString()).initializers["big"]
    except ProtocolError:
        return
    assert 0 in dims
    assert len(read.raw) == 0


def test_the_operators_are_those_of_ai_onnx_that_compute_tensors_from_tensors():
    """No subgraphs, sequences, strings, chance or sizes that depend on values: everything else of opset 17."""
    schemas = sorted(onnx.defs.get_all_schemas_with_history(), key=lambda schema: schema.since_version)
    newest = {s.name: s for s in schemas if not s.domain and s.since_version <= OPSET}
    graphs = (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)

    def types(schema):
        return [set(formal.types) for formal in (*schema.inputs, *schema.outputs)]

    def is_plain(schema):
        takes_graphs = any(a.type in graphs for a in schema.attributes.values())
        sequences = any(t.startswith(("seq", "optional")) for formal in types(schema) for t in formal)
        strings = any(formal == {"tensor(string)"} for formal in types(schema))
        return not (takes_graphs or strings or (sequences and schema.name != "Identity"))

    chance = {"Bernoulli", "Dropout", "Multinomial"} | {name for name in newest if name.startswith("Random")}
    by_value = {"NonZero", "Unique", "NonMaxSuppression", "Compress", "TfIdfVectorizer"}
    plain = {name for name, schema in newest.items() if not schema.deprecated and is_plain(schema)}
    assert plain - chance - by_value == OPERATORS
