"""A function of torch tensors -> an fx graph of aten ops, autograd included, without writes in place and constants."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_protocol.errors import ConfigError
from models.advice import instead_of, is_foreseen, refusal
from models.decompositions import decompositions
from models.origins import Origins

# Any size above one will do: torch specialises 0 and 1, and gates.py tries other sizes on the result.
_TRACED_BATCH = 6
# A constant of more elements stays a node if it is made from fewer: the bundle travels over the air.
_MAX_FOLDED = 4096

TensorFunction = Callable[[dict[str, Tensor]], dict[str, Tensor]]
aten = torch.ops.aten
_CHECKS = (aten._assert_async.msg, aten._assert_async.default)  # noqa: SLF001


class Traced(NamedTuple):
    """What `trace` makes: the graph, the function's results by name as fake tensors, and known values of nodes."""

    graph: fx.Graph
    outputs: dict[str, Tensor]
    constants: dict[fx.Node, Tensor]


def trace(
    function: TensorFunction, named: Mapping[str, Tensor], batched: Sequence[str], known: Container[Any]
) -> Traced:
    """Trace `function` on fake tensors; the first dimension of those in `batched` is one symbol.

    The graph's placeholders are `named`, in order; `known` are the ops that can be written.
    Raises `ConfigError` for what cannot be traced.
    """
    shapes, origins = ShapeEnv(), Origins()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fakes, batch = [], None
    for name, tensor in named.items():
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if name in batched:
            sizes[0] = DimDynamic.DYNAMIC
            tensor = tensor[:1].repeat(_TRACED_BATCH, *[1] * (tensor.dim() - 1))
        fake = mode.from_tensor(tensor.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
        if name in batched:
            batch = fake.shape[0] if batch is None else batch
            torch._check(fake.shape[0] == batch)  # noqa: SLF001  x and y have one batch size, not one each
        fakes.append(fake)
    outputs: dict[str, Tensor] = {}

    def flat(*tensors: Tensor) -> list[Tensor]:
        outputs.update(function(dict(zip(named, tensors, strict=True))))
        return list(outputs.values())

    # Without the python dispatcher some decompositions would bake the traced batch size in, silently. Attention takes
    # its mathematical path: the fused kernels have gradients that no table could write.
    with mode, enable_python_dispatcher(), sdpa_kernel(SDPBackend.MATH), origins.watching():
        try:
            traced = make_fx(flat, decomposition_table=decompositions())(*fakes)
        except ConfigError as error:
            where = origins.current()
            raise ConfigError(f"{error.message}, {where}" if where else error.message, error.hint) from error
        except Exception as error:
            raise refusal(error, origins.current()) from error
    if batch is not None and shapes.simplify(batch.node.expr).is_number:
        raise ConfigError(
            f"the model works for a batch of {_TRACED_BATCH} only",
            "take the batch size from x.shape[0], never as a number, and do not compare it with one",
        )
    without_writes(traced.graph, known)
    traced.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return Traced(traced.graph, outputs, _constants(traced))


def without_writes(graph: fx.Graph, known: Container[Any]) -> None:
    """Replace each write in place by the op that returns the result: make_fx gives later readers that result.

    Raises `ConfigError` where another view of the same memory is read after the write.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
            continue
        if not node.target._schema.is_mutable:  # noqa: SLF001
            continue
        written = node.args[0]
        for other in _sharing(written, graph.nodes):
            if order[other] < order[node] and any(order[user] > order[node] for user in other.users):
                _refuse_unknown(graph, known)  # what torch takes apart badly is better named than its parts
                raise ConfigError(
                    f"the model writes into a part of a tensor ({node.target}), {Origins.of(node)}",
                    "make the whole anew: torch.cat, torch.where or F.pad in place of an assignment to a slice",
                )
        packet, overload = str(node.target).removeprefix("aten.").split(".")
        functional = getattr(getattr(aten, packet.rstrip("_"), None), overload, None)
        if functional is None:
            raise ConfigError(f"the model uses {node.target}, {Origins.of(node)}", "use the op that returns its result")
        node.target = functional


def _refuse_unknown(graph: fx.Graph, known: Container[Any]) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in known and is_foreseen(node.target):
            raise ConfigError(
                f"the model uses {node.target}, which has no ONNX translation, {Origins.of(node)}",
                instead_of(node.target),
            )


def _sharing(written: fx.Node, nodes: Iterable[fx.Node]) -> Iterable[fx.Node]:
    memory = _memory(written)
    return (node for node in nodes if node is not written and memory is not None and _memory(node) == memory)


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None  # noqa: SLF001


def _constants(traced: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The nodes that depend on no input, with their values."""
    known: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = getattr(traced, str(node.target))
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes) and _is_small(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            value = node.target(*args, **{name: arg for name, arg in kwargs.items() if name != "device"})
        else:
            continue
        known[node] = value
    return {node: value for node, value in known.items() if isinstance(value, Tensor) and not _is_fake(value)}


def _is_small(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value is not None and not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
    made_from = [n.meta["val"].numel() for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    return all(isinstance(s, int) for s in value.shape) and value.numel() <= max([_MAX_FOLDED, *made_from])


def _is_fake(value: Tensor) -> bool:
    return isinstance(value, FakeTensor)
