"""Which layer of the author's network each traced op comes from, for errors that say where to look.

Forward: hooks on all modules keep the stack of those at work. Backward: autograd numbers its nodes as the forward pass
makes them, so the number of the node at work tells whose forward pass made it.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.fx import traceback
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_KEY = "custom"  # of the meta fields that fx copies into a node, the one that is free to use


class Origins:
    """While `watching`, every node that fx makes is marked with its layer; `of` reads the mark."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._names: dict[int, str] = {}  # id of a module -> its dotted name in the outermost one
        self._starts: list[int] = [-1]  # autograd's numbers at which another layer began
        self._layers: list[str] = [""]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Mark what is traced in this context. After an error `current` is the layer that raised it."""
        hooks = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)]
        try:
            with traceback.preserve_node_meta():
                traceback.current_meta[_KEY] = _Mark(self)
                yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def of(node: fx.Node) -> str:
        """Where a node comes from, for a sentence: `in features.3 (Bilinear)`."""
        layer: str = node.meta.get(_KEY, {}).get("layer", "")
        return layer or "outside of all layers, in the loss, the metric or the optimizer"

    def current(self) -> str:
        """The layer at work: in the forward pass or, if autograd is at work, the one it differentiates."""
        node = torch._C._current_autograd_node()  # noqa: SLF001  no public name tells the node at work
        if node is None:
            return f"in {self._stack[-1]}" if self._stack else ""
        layer = self._layers[bisect_right(self._starts, node._sequence_nr()) - 1]  # noqa: SLF001
        return f"in the gradient of {layer}" if layer else ""

    def _enter(self, module: nn.Module, _inputs: object) -> None:
        if not self._stack:
            self._names = {id(m): name for name, m in module.named_modules()}
        name = self._names.get(id(module), "")
        kind = type(module).__name__
        self._stack.append(f"{name} ({kind})" if name else kind)
        self._note()

    def _leave(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        self._starts.append(torch.autograd._get_sequence_nr())  # noqa: SLF001
        self._layers.append(self._stack[-1] if self._stack else "")


class _Mark(dict[str, str]):
    """fx copies this into each node when it makes it; the copy names the layer at that moment."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins

    def __copy__(self) -> dict[str, str]:
        return {"layer": self._origins.current()}
