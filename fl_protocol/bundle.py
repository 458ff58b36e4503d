"""A bundle: one model's compiled graphs, layout and first version in one file, addressed by its SHA-256.

    b"ANABRANCH-BUNDLE-2\\n" + zlib(msgpack({"manifest": <JSON bytes>, "files": {name: bytes}}))

(`-1` without zlib is read too: some are in the field.)

Everything in it is data. `Bundle.read` believes nothing: it bounds each length, checks each hash, and walks
each graph far enough to know its inputs, outputs and stored tensors before onnxruntime may see it.
What the five graphs take and give is written down once, in `_check_graphs`.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

import msgpack
import msgspec
import numpy as np
from msgspec import Meta

from fl_protocol.errors import Code, ProtocolError
from fl_protocol.onnx_file import OnnxFile, TensorSpec, fill_initializers
from fl_protocol.tensors import MAX_RANK, ModelLayout, TensorEntry, Vector, split_entries

__all__ = [
    "BATCH",
    "INITIAL",
    "MAGIC",
    "MAX_BUNDLE_BYTES",
    "PERSONAL",
    "Better",
    "Bundle",
    "Feed",
    "GraphName",
    "fill_initializers",
    "pack_bundle",
]

MAGIC, PLAIN_MAGIC = b"ANABRANCH-BUNDLE-2\n", b"ANABRANCH-BUNDLE-1\n"
MAX_BUNDLE_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 32

GraphName = Literal["train", "evaluate", "quantize", "int8", "float"]
BATCH = "batch"  # the one free dimension, always the first
INITIAL = "initial.f32"
PERSONAL = "personal.f32"

Better = Literal["higher", "lower"]
# What the training graph takes beside its state, its examples and its hyperparameters: `seed`, an int64 scalar, another
# one at each step (dropout); `NAME.base` for each parameter, its value in the base version (FedProx).
Feed = Literal["seed", "base"]

_Text = Annotated[str, Meta(max_length=4096)]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}\Z")]
_Shape = Annotated[list[Annotated[int, Meta(ge=1, le=1 << 24)]], Meta(max_length=MAX_RANK - 1)]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: what a device or a gateway needs to know of a model."""

    sha256: str
    name: str
    description: str
    licence: str
    layout: ModelLayout
    x_shape: tuple[int, ...]  # of one example, as all shapes here: without the batch dimension
    x_dtype: str
    y_shape: tuple[int, ...]
    y_dtype: str
    labels: tuple[str, ...]
    metric: str
    hyper: Mapping[str, float]  # the training graph's scalar inputs and their defaults
    batch_size: int
    graphs: Mapping[GraphName, bytes]
    initial: Vector  # shape (layout.size,): the version that training starts from
    better: Better = "higher"  # whether a larger or a smaller value of the metric is the better one
    feeds: tuple[Feed, ...] = ()
    personal: Vector = field(default_factory=lambda: np.zeros(0, np.float32))  # where personal entries start

    @classmethod
    def read(cls, data: bytes, expected_sha256: str | None = None) -> Self:
        """Parse and verify a bundle's bytes; the inverse of `pack_bundle`.

        Raises `ProtocolError`: E_SIZE above `MAX_BUNDLE_BYTES` or where a file's length differs from the
        manifest, E_SHA for a wrong hash, E_FINGERPRINT for a layout that is not the manifest's, E_NAN for
        initial values that are not finite, E_SCHEMA for everything else.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise ProtocolError(Code.SIZE, f"a bundle has at most {MAX_BUNDLE_BYTES} bytes, not {len(data)}")
        sha256 = hashlib.sha256(data).hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise ProtocolError(Code.SHA, f"the bundle's SHA-256 is {sha256}, not {expected_sha256!r:.80}")
        manifest, files = _unpack(data)
        layout = ModelLayout.from_rows(manifest.layout)
        if layout.fingerprint != manifest.fingerprint:
            raise ProtocolError(
                Code.FINGERPRINT,
                f"the layout's fingerprint is {layout.fingerprint}, not {manifest.fingerprint!r:.80}",
            )
        if not all(math.isfinite(value) for value in manifest.hyper.values()):
            raise ProtocolError(Code.NAN, "a hyperparameter's default is not finite")
        personal_size = sum(e.size for e in layout.with_role("personal"))
        initial = _vector(INITIAL, files[INITIAL], layout.size)
        personal = _vector(PERSONAL, files.get(PERSONAL, bytes(4 * personal_size)), personal_size)
        _check_graphs(manifest, layout, files)
        return cls(
            sha256=sha256,
            name=manifest.name,
            description=manifest.description,
            licence=manifest.licence,
            layout=layout,
            x_shape=tuple(manifest.input.x.shape),
            x_dtype=manifest.input.x.dtype,
            y_shape=tuple(manifest.input.y.shape),
            y_dtype=manifest.input.y.dtype,
            labels=tuple(manifest.labels),
            metric=manifest.metric,
            hyper=dict(manifest.hyper),
            batch_size=manifest.batch_size,
            graphs={name: files[file] for name, file in manifest.graphs.items()},
            initial=initial,
            better=manifest.better,
            feeds=tuple(manifest.feeds),
            personal=personal,
        )

    def graph(self, name: GraphName) -> bytes:
        """The ONNX file of one graph."""
        return self.graphs[name]

    @cached_property
    def personal_tensors(self) -> dict[str, Vector]:
        """Each personal entry where it starts, by name: what one has who is no device."""
        return split_entries(self.layout.with_role("personal"), self.personal)

    def tensors(self, version: Vector, personal: Vector | None = None) -> dict[str, Vector]:
        """A version, shape (layout.size,), and personal entries, where they start unless given, by name."""
        own = self.personal_tensors
        if personal is not None:
            own = split_entries(self.layout.with_role("personal"), personal)
        return {**self.layout.split(version), **own}

    @cached_property
    def float_entries(self) -> tuple[TensorEntry, ...]:
        """What to fill the float graph with: parameters, and of the personal and measured entries those it stores."""
        stored = OnnxFile.read(self.graphs["float"]).initializers
        return tuple(e for e in self.layout.entries if e.role != "optimizer" and e.name in stored)


def pack_bundle(manifest: Mapping[str, object], files: Mapping[str, bytes]) -> bytes:
    """A bundle's bytes: the same for the same content, whatever the order of its keys.

    `manifest` has every field of the format but `v` and `files`, which are computed; `files` maps names to
    content.
    """
    listed = {n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for n, b in files.items()}
    text = json.dumps({**manifest, "v": 1, "files": listed}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content = {"files": {name: files[name] for name in sorted(files)}, "manifest": text.encode()}
    packed: bytes = msgpack.packb(content, use_bin_type=True)
    return MAGIC + zlib.compress(packed, 9)


class _File(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class _Value(msgspec.Struct, frozen=True):
    shape: _Shape
    dtype: Literal["float32", "int64"]


class _Input(msgspec.Struct, frozen=True):
    x: _Value
    y: _Value


class _Manifest(msgspec.Struct, frozen=True):
    v: Literal[1]
    name: Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,64}\Z")]
    layout: list[dict[str, Any]]
    fingerprint: str
    input: _Input
    labels: Annotated[list[_Text], Meta(max_length=4096)]
    metric: _Name
    graphs: dict[GraphName, _Name]
    hyper: Annotated[dict[_Name, float], Meta(max_length=64)]
    batch_size: Annotated[int, Meta(ge=1, le=65536)]
    files: Annotated[dict[_Name, _File], Meta(max_length=MAX_FILES)]
    description: _Text = ""
    licence: _Text = ""
    better: Better = "higher"
    feeds: Annotated[list[Feed], Meta(max_length=len(get_args(Feed)))] = []


def _unpack(data: bytes) -> tuple[_Manifest, dict[str, bytes]]:
    """The manifest, and the files that it lists, each of the right length and hash."""
    packed = _inflated(data)
    try:
        content = msgpack.unpackb(
            packed,
            raw=False,
            max_map_len=MAX_FILES,
            max_array_len=0,
            max_ext_len=0,
            max_str_len=128,
            max_bin_len=len(packed),
        )
    except (ValueError, msgpack.UnpackException) as error:  # truncated, or not msgpack, or more than we allow
        raise ProtocolError(Code.SCHEMA, f"the bundle does not unpack: {error}") from error
    match content:
        case {"manifest": bytes(text), "files": dict(files), **rest} if not rest:
            pass
        case _:
            raise ProtocolError(Code.SCHEMA, "a bundle holds a manifest and files, and nothing else")
    if len(text) > MAX_MANIFEST_BYTES:
        raise ProtocolError(Code.SIZE, f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, not {len(text)}")
    try:
        manifest = msgspec.json.decode(text, type=_Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(Code.SCHEMA, f"the bundle's manifest is wrong: {error}") from error
    if set(manifest.graphs) != set(get_args(GraphName)):
        raise ProtocolError(Code.SCHEMA, f"a bundle has the graphs {', '.join(get_args(GraphName))}, no other")
    if len(set(manifest.feeds)) != len(manifest.feeds):
        raise ProtocolError(Code.SCHEMA, "the bundle's manifest names one feed twice")
    expected = {*manifest.graphs.values(), INITIAL}
    if set(files) != set(manifest.files) or not expected <= set(files) <= {*expected, PERSONAL}:
        raise ProtocolError(Code.SCHEMA, "the bundle's files are not those that its manifest lists")
    for name, listed in manifest.files.items():
        blob = files[name]
        if not isinstance(blob, bytes) or len(blob) != listed.size:
            raise ProtocolError(Code.SIZE, f"the file {name} does not have {listed.size} bytes")
        if hashlib.sha256(blob).hexdigest() != listed.sha256:
            raise ProtocolError(Code.SHA, f"the file {name} does not have its SHA-256")
    return manifest, files


def _inflated(data: bytes) -> bytes | memoryview:
    """What stands behind the first line, at most `MAX_BUNDLE_BYTES` of it."""
    if data.startswith(PLAIN_MAGIC):
        return memoryview(data)[len(PLAIN_MAGIC) :]
    if not data.startswith(MAGIC):
        raise ProtocolError(Code.SCHEMA, "these bytes are not a bundle: the first line is wrong")
    inflating = zlib.decompressobj()
    try:
        packed = inflating.decompress(memoryview(data)[len(MAGIC) :], MAX_BUNDLE_BYTES + 1)
    except zlib.error as error:
        raise ProtocolError(Code.SCHEMA, f"the bundle does not unpack: {error}") from None
    if len(packed) > MAX_BUNDLE_BYTES:
        raise ProtocolError(Code.SIZE, f"a bundle unpacks to at most {MAX_BUNDLE_BYTES} bytes")
    if not inflating.eof or inflating.unused_data:
        raise ProtocolError(Code.SCHEMA, "the bundle does not unpack: it is cut off, or goes on behind its end")
    return packed


def _vector(file: str, data: bytes, size: int) -> Vector:
    if len(data) != 4 * size:
        raise ProtocolError(Code.SIZE, f"{file} holds {len(data)} bytes, not 4 x {size}")
    vector = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ProtocolError(Code.NAN, f"{file} holds values that are not finite")
    return vector


def _check_graphs(manifest: _Manifest, layout: ModelLayout, files: Mapping[str, bytes]) -> None:
    """Hold each graph against what it must take and give. Raises `ProtocolError(E_SCHEMA)`."""
    graphs: dict[GraphName, OnnxFile] = {n: OnnxFile.read(files[file]) for n, file in manifest.graphs.items()}
    x, y = (
        TensorSpec(name, value.dtype, (BATCH, *value.shape))
        for name, value in (("x", manifest.input.x), ("y", manifest.input.y))
    )
    loss, loss_sum, correct = (_scalar(name) for name in ("loss", "loss_sum", "correct"))
    # A model without labels (a regression) gives what it likes, as long as it is one row an example.
    classes = graphs["int8"].outputs[0].shape[1:] if not manifest.labels and graphs["int8"].outputs else ()
    logits = TensorSpec(
        "logits", "float32", (BATCH, *classes) if not manifest.labels else (BATCH, len(manifest.labels))
    )
    entries = [_spec(e) for e in layout.entries]
    forward = [_spec(e) for e in layout.entries if e.role != "optimizer"]
    hyper = [_scalar(name) for name in manifest.hyper]
    following = [spec._replace(name=f"{spec.name}.next") for spec in entries]
    fed = [TensorSpec("seed", "int64", ())] if "seed" in manifest.feeds else []
    if "base" in manifest.feeds:
        fed += [TensorSpec(f"{e.name}.base", "float32", e.shape) for e in layout.with_role("parameter")]

    _expect("train", graphs["train"].inputs, [*entries, x, y, *hyper, *fed], ordered=False)
    _expect("train", graphs["train"].outputs, [*following, loss, correct], ordered=True)
    _expect("evaluate", graphs["evaluate"].inputs, [*forward, x, y], ordered=False)
    _expect("evaluate", graphs["evaluate"].outputs, [loss_sum, correct], ordered=True)
    _expect("quantize", graphs["quantize"].inputs, forward, ordered=False)
    for name in ("int8", "float"):
        _expect(name, graphs[name].inputs, [x], ordered=True)
        _expect(name, graphs[name].outputs, [logits], ordered=True)
    _expect_stored("int8", graphs["int8"], graphs["quantize"].outputs)
    _expect_stored("float", graphs["float"], [_spec(e) for e in layout.with_role("parameter")])
    # Of the personal and measured entries it needs some (a head, running moments) and others not (activation ranges).
    needed = [spec for spec in forward if spec.name in graphs["float"].initializers]
    _expect_stored("float", graphs["float"], needed)


def _spec(entry: TensorEntry) -> TensorSpec:
    return TensorSpec(entry.name, "float32", entry.shape)


def _scalar(name: str) -> TensorSpec:
    return TensorSpec(name, "float32", ())


def _expect(graph: str, actual: Sequence[TensorSpec], expected: Sequence[TensorSpec], *, ordered: bool) -> None:
    if not ordered:  # inputs are fed by name, outputs are read by position
        actual, expected = sorted(actual, key=str), sorted(expected, key=str)
    if len(actual) != len(expected):
        raise ProtocolError(Code.SCHEMA, f"the graph {graph} has {len(actual)} values where {len(expected)} belong")
    for a, e in zip(actual, expected, strict=True):
        if a != e:
            raise ProtocolError(Code.SCHEMA, f"the graph {graph} has {_text(a)} where {_text(e)} belongs")


def _expect_stored(graph: str, file: OnnxFile, expected: Sequence[TensorSpec]) -> None:
    for spec in expected:
        stored = file.initializers.get(spec.name)
        if stored is None or (stored.dtype, stored.shape) != (spec.dtype, spec.shape):
            raise ProtocolError(Code.SCHEMA, f"the graph {graph} has no initializer {_text(spec)} to fill")


def _text(spec: TensorSpec) -> str:
    return f"{spec.name!r:.80} {spec.dtype}{list(spec.shape)}"
