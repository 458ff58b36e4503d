# mypy: allow-subclassing-any
"""docs/bring-your-own-model.md, its second half: what it says the exporter can do, it does, and what it cannot, not."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import models.__main__ as cli
from fl_protocol.errors import ConfigError
from models import losses, metrics, optimizers
from models.build import compile_graphs
from models.examples import check_examples, from_npz
from models.gates import Gate
from models.spec import Input, ModelSpec, Splits
from models.step import Step
from tests.docs.pages import blocks, codes
from tests.docs.test_bring_your_own_model import PAGE, rows

# How a layer is built, and what it is called with: of x (B, 4, 8, 8) itself, of h (B, 8, 8), or of numbers i (B, 8).
LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor, nn.Module], Tensor]] = {
    "nn.GRU(8, 4, batch_first=True)": lambda _x, h, _i, layer: layer(h)[0],
    "nn.LSTM(8, 4, batch_first=True)": lambda _x, h, _i, layer: layer(h)[0],
    "nn.MultiheadAttention(8, 2, batch_first=True)": lambda _x, h, _i, layer: layer(h, h, h)[0],
    "nn.Embedding(2, 4)": lambda _x, _h, i, layer: layer(i),
}
OF_PLANES = (
    "nn.Conv2d(4, 4, 3, stride=2, dilation=2, groups=4)", "nn.ConvTranspose2d(4, 2, 3)", "nn.BatchNorm2d(4)",
    "nn.GroupNorm(2, 4)", "nn.InstanceNorm2d(4)", "nn.MaxPool2d(3, 2)", "nn.AvgPool2d(3, 2)", "nn.AdaptiveAvgPool2d(2)",
    "nn.AdaptiveMaxPool2d(1)", "nn.Dropout2d(0.2)", "nn.Upsample(scale_factor=2)", "nn.PixelShuffle(2)",
    "nn.ZeroPad2d(1)", "nn.ReflectionPad2d(1)",
)  # fmt: skip
OF_SEQUENCES = (
    "nn.Linear(8, 4)", "nn.Conv1d(8, 4, 3, stride=2, dilation=2, groups=4)", "nn.ConvTranspose1d(8, 4, 3)",
    "nn.BatchNorm1d(8)", "nn.LayerNorm(8)", "nn.RMSNorm(8)", "nn.MaxPool1d(3, 2)", "nn.AvgPool1d(3, 2)",
    "nn.Dropout(0.2)", "nn.Dropout1d(0.2)", "nn.Softmax(-1)", "nn.Flatten()",
)  # fmt: skip
LAYERS |= dict.fromkeys(OF_PLANES, lambda x, _h, _i, layer: layer(x))
LAYERS |= dict.fromkeys(OF_SEQUENCES, lambda _x, h, _i, layer: layer(h))
BUILT = {text.partition("(")[0]: text for text in LAYERS}
# Of what is refused: how it is called where that is not layer(h), with h (B, 8, 8).
REFUSED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "nn.Bilinear": lambda layer, h: layer(h, h),
    "nn.GRUCell": lambda layer, h: layer(h[:, 0]),
    "nn.EmbeddingBag": lambda layer, h: layer((h[:, 0] > 0).to(torch.int64)),
    "nn.Conv3d": lambda layer, h: layer(h[:, :5, :, None, None]),
}


class SideBySide(nn.Module):
    """Layers, each on what it takes; the classes are told from all of their results."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.calls = [LAYERS.get(BUILT.get(n, ""), lambda _x, h, _i, layer: layer(h)) for n in names]
        self.layers = nn.ModuleList(eval(BUILT.get(name, f"{name}()")) for name in names)
        self.before, self.beside = nn.Linear(8, 8), nn.Linear(8, 3)
        self.classify = nn.ModuleList(nn.LazyLinear(3) for _ in names)
        self.eval()(torch.zeros(2, 4, 8, 8))
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x[:, 0])
        results = [call(x, h, (x[:, 0, 0] > 0).to(torch.int64), layer) for call, layer in self._both()]
        logits: Tensor = self.beside(h.mean(1))
        for classify, result in zip(self.classify, results, strict=True):
            logits = logits + classify(result.flatten(1))
        return logits

    def _both(self) -> list[tuple[Any, nn.Module]]:
        return list(zip(self.calls, self.layers, strict=True))


class Written(nn.Module):
    """What an author may write of h: a layer, or a line of torch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, name = text, text.partition("(")[0]
        self.before, self.classify = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layer = eval(text) if name.startswith("nn.") else None
        self.call = REFUSED.get(name, lambda layer, h: layer(h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x[:, 0])
        result = (
            self.call(self.layer, h) if self.layer is not None else eval(self.text, {"torch": torch, "F": F}, {"h": h})
        )
        result = result[0] if isinstance(result, tuple) else result
        return self.classify(h.mean(1)) + result.mean()


def spec_of(module: Callable[[], nn.Module]) -> ModelSpec:
    return ModelSpec(
        name="some",
        description="",
        licence="",
        module=module,
        x=Input((4, 8, 8), torch.float32),
        labels=("a", "b", "c"),
        examples=lambda: Splits(*[(np.zeros((4, 4, 8, 8), np.float32), np.zeros(4, np.int64))] * 3),
        optimizer=optimizers.Sgd(learning_rate=0.1),
    )


def test_every_layer_that_is_tested_is_on_the_page() -> None:
    """Nothing is tried here that an author is not told of."""
    assert set(BUILT) <= {name for row in rows("kind") for name in codes(row[1])}


@pytest.mark.parametrize("row", rows("kind"), ids=lambda row: row[0].partition(",")[0])
def test_every_layer_on_the_page_trains_and_becomes_int8(row: tuple[str, ...]) -> None:
    """Each layer that a row names is compiled, with its gradient and as the int8 model has it."""
    graphs = compile_graphs(Step(spec_of(lambda: SideBySide(codes(row[1])))), ("train", "int8"))
    assert set(graphs) == {"train", "int8"}


CANNOT = [(codes(have)[0], codes(instead)) for have, instead in rows("you have")]


@pytest.mark.parametrize("text", [have for have, _ in CANNOT])
def test_what_the_page_says_cannot_be_is_refused(text: str) -> None:
    """With a hint, at the layer."""
    with pytest.raises(ConfigError) as refused:
        compile_graphs(Step(spec_of(lambda: Written(text))), ("train", "int8"))
    assert refused.value.hint


@pytest.mark.parametrize("text", [t for _, instead in CANNOT for t in instead if t.startswith(("h.", "h *", "(h"))])
def test_what_the_page_offers_instead_compiles(text: str) -> None:
    """Each line of torch in the second column."""
    assert compile_graphs(Step(spec_of(lambda: Written(text))), ("train",))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of both listings, and what the variations use beside them."""
    names: dict[str, Any] = {**vars(losses), **vars(metrics), **vars(optimizers), "partial": partial, "nn": nn}
    for name, file in (("models.event_log.model", "model.py"), ("models.event_log", "__init__.py")):
        (listing,) = [block for block in blocks(PAGE) if block.file == f"models/event_log/{file}"]
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(listing.body, vars(module))
        names |= vars(module)
    for block in blocks(PAGE):
        if block.language == "python" and not block.file:
            exec(block.body, names)
    return names


def _module(page: dict[str, Any], text: str) -> nn.Module:
    """What the rows of the second table of variations suppose: one number an example, (B, 1)."""
    module = page["EventLog"]()
    module.classify = nn.Linear(16, 1)
    return nn.Sequential(module, nn.Flatten(0)) if "reconstruction" in text else module


VARIATIONS = [codes(row[1])[0] for row in rows("you want")]


@pytest.mark.parametrize("text", VARIATIONS)
def test_every_variation_compiles(text: str, page: dict[str, Any], tmp_path: Any, monkeypatch: Any) -> None:
    """The fields of its row, in place of the page's."""
    folder = tmp_path / "runs" / "events"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    torch.save(page["EventLog"]().state_dict(), folder / "pretrained.pt")
    fields = eval(f"dict({text})", page)
    if "labels" in fields:
        fields["module"] = lambda: _module(page, text)
    step = Step(replace(page["SPEC"], **fields))
    assert compile_graphs(step, ("train",))
    if "frozen" in fields:
        assert all(name.startswith("classify") for name in step.parameters)
    if "personal" in fields:
        assert set(step.personal) >= {"classify.weight", "classify.bias"}


def test_a_loss_and_a_metric_of_ones_own_compile(page: dict[str, Any]) -> None:
    """The fields that the page says below them, around a module of six logits."""
    (line,) = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("The spec then says")]
    fields = eval(f"dict({codes(line)[0]})", page)
    module = nn.Sequential(nn.Embedding(10, 2), nn.Flatten(), nn.Linear(24, 6))
    assert compile_graphs(Step(replace(page["SPEC"], **fields, module=lambda: module)), ("train", "evaluate"))


def _layout(spec: ModelSpec, **fields: Any) -> None:
    assert Step(replace(spec, **fields)).layout


def _gates(spec: ModelSpec) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "load", lambda _name: spec)
        patch.setattr(cli, "build_bundle", lambda _spec: (cli.SHIPPED / "stand_in.bundle").read_bytes())
        patch.setattr(cli, "run_gates", lambda *_: [Gate("some", "2", "1", False)])
        cli.build("some")


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classify, self.idle = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.classify(x.float())
        return h


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.classify = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.classify(self.one(self.one(x.float()).relu()))
        return h


class BatchSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.classify = nn.MultiheadAttention(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.float().unflatten(1, (3, 4))
        logits: Tensor = self.classify(self.attend(h, h, h, need_weights=False)[0].mean(1))
        return logits


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.classify(x.float().reshape(6, 12) if x.shape[0] == 6 else x.float())
        return h


def _splits(x: Any, y: Any) -> Splits:
    return Splits(*[(np.asarray(x), np.asarray(y))] * 3)


_X = np.zeros((2, 12), np.int64)
ERRORS: dict[str, Callable[[ModelSpec], Any]] = {
    "there is no runs/events/": lambda _spec: from_npz("runs/events/nowhere.npz"),
    "has values that are not finite": lambda spec: check_examples(
        replace(spec, x=Input((1,), torch.float32)), _splits(np.full((2, 1), np.nan, np.float32), [0, 0])
    ),
    "the spec says": lambda spec: check_examples(spec, _splits(_X[:, :3], [0, 1])),
    "for 3 labels": lambda spec: check_examples(spec, _splits(_X, [0, 3])),
    "the module fails on x of": lambda spec: _layout(spec, x=Input((), torch.float32)),
    "the loss fails on an output of": lambda spec: _layout(
        spec, y=Input((2,), torch.float32), loss=lambda output, y: (output - y).square().mean(1)
    ),
    "not a Metric": lambda spec: _layout(spec, metric=metrics.absolute_error),
    "labels and an output of": lambda spec: _layout(spec, labels=("healthy", "not")),
    "the loss does not depend on": lambda spec: _layout(spec, module=Idle),
    "which is no part of the module": lambda spec: _layout(spec, frozen=("embedding",)),
    "which has no ONNX translation": lambda _spec: compile_graphs(Step(spec_of(lambda: Written("h.sort(-1).values")))),
    "the model decides by a tensor's value": lambda _spec: compile_graphs(
        Step(spec_of(lambda: Written("h if h.sum() > 0 else -h")))
    ),
    "two free dimensions": lambda spec: compile_graphs(Step(replace(spec, module=BatchSecond))),
    "the model works for a batch of": lambda spec: compile_graphs(Step(replace(spec, module=Reshaped))),
    "the model writes into a part of a tensor": lambda _spec: compile_graphs(
        Step(spec_of(lambda: Written("(h.__setitem__((slice(None), 0), 0.0), h)[1]")))
    ),
    "is used 2 times": lambda spec: _layout(spec, module=Twice),
    "gates not passed": _gates,
}


@pytest.mark.parametrize("text", ERRORS)
def test_every_error_on_the_page_is_said(text: str, page: dict[str, Any], tmp_path: Any, monkeypatch: Any) -> None:
    """In its message or in its hint."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as said:
        ERRORS[text](page["SPEC"])
    assert text in str(said.value)


def test_every_error_that_is_tested_is_on_the_page() -> None:
    """And no other is on it."""
    assert [codes(row[0])[0] for row in rows("it says")] == list(ERRORS)
