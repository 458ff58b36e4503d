"""Sessions and steps: the same bits whichever way a step is taken, and the processor where nothing better starts."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.limits import cores
from edge_agent.runtime import CPU, Runtime, StepLoop, open_session, run
from edge_agent.training import Provider
from fl_protocol.bundle import Bundle
from fl_protocol.errors import Code, ProtocolError
from tests.edge_agent.rig import BUNDLE, ROOT

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
BUNDLES = sorted((ROOT / "anabranch/data").glob("*.bundle"))


def batches(bundle: Bundle, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Batches of noise."""
    rng, made = np.random.default_rng(0), []
    for n in sizes:
        x = rng.normal(0, 0.1, (n, *bundle.x_shape)).astype(bundle.x_dtype)
        y = rng.integers(0, max(1, len(bundle.labels)), (n, *bundle.y_shape)).astype(bundle.y_dtype)
        seed = {"seed": np.asarray(rng.integers(1 << 63), np.int64)} if "seed" in bundle.feeds else {}
        made.append({"x": x, "y": y, **seed})
    return made


def beginning(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every entry where training starts, and what is fed to each step alike."""
    layout, shared = bundle.layout, bundle.layout.split(bundle.initial)
    zeros = {e.name: np.zeros(e.shape, np.float32) for e in layout.with_role("optimizer")}
    values = {**shared, **bundle.personal_tensors, **zeros}
    fixed = {name: np.asarray(value, np.float32) for name, value in bundle.hyper.items()}
    if "base" in bundle.feeds:
        fixed |= {f"{e.name}.base": shared[e.name] for e in layout.with_role("parameter")}
    return {e.name: values[e.name] for e in layout.entries}, fixed


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("copies", [False, True])
def test_a_loop_of_steps_gives_the_bits_of_plain_runs(path: Path, copies: bool) -> None:
    """Also where a batch is smaller than the one before, and larger again."""
    bundle = Bundle.read(path.read_bytes())
    session, (state, fixed) = open_session(bundle.graph("train"), 1), beginning(bundle)
    loop = StepLoop(session, state, fixed, copies=copies)
    for batch in batches(bundle, [32, 32, 5, 32, 1, 16]):
        *following, loss, _ = run(session, None, {**state, **fixed, **batch})
        state = dict(zip(state, following, strict=True))
        assert loop.step(batch) == float(loss)
        for name, value in state.items():
            np.testing.assert_array_equal(loop.state[name], value)


def test_a_loop_leaves_the_base_version_as_it_is() -> None:
    """Its buffers are its own: the caller's vector may be read-only, and stays."""
    initial = BUNDLE.initial.copy()
    initial.setflags(write=False)
    loop = StepLoop(open_session(BUNDLE.graph("train"), 1), *beginning(replace(BUNDLE, initial=initial)))
    for batch in batches(BUNDLE, [8, 8, 8]):
        loop.step(batch)
    np.testing.assert_array_equal(initial, BUNDLE.initial)
    assert not np.array_equal(BUNDLE.layout.join(loop.state), initial)


def test_a_step_that_does_not_run_is_the_peers_fault() -> None:
    """E_SCHEMA for a batch of the wrong shape."""
    loop = StepLoop(open_session(BUNDLE.graph("train"), 1), *beginning(BUNDLE))
    with pytest.raises(ProtocolError, match="the graph failed") as caught:
        loop.step({"x": np.zeros((4, 7), np.float32), "y": np.zeros(4, np.int64)})
    assert caught.value.code == Code.SCHEMA


class Installed:
    """An onnxruntime in which some providers start and others do not."""

    def __init__(self, *starting: str, fails: bool = False) -> None:
        self.starting, self.fails = starting, fails
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    def open(self, graph: bytes, threads: int, providers: Sequence[str]) -> Any:
        self.asked.append((threads, tuple(providers)))
        if self.fails and providers[0] != CPU:
            raise ProtocolError(Code.SCHEMA, "libcudnn.so.9 is missing")
        session = open_session(graph, threads)
        started = [name for name in providers if name in (*self.starting, CPU)]
        session.get_providers = lambda: started  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(
    ("wanted", "available", "asked", "name"),
    [
        ("auto", [CPU], (CPU,), "cpu"),
        ("auto", [CUDA, CPU], (CUDA, CPU), "cuda"),
        ("auto", [TENSORRT, CUDA, CPU], (CUDA, CPU), "cuda"),
        ("cpu", [CUDA, CPU], (CPU,), "cpu"),
        ("cuda", [CUDA, CPU], (CUDA, CPU), "cuda"),
        ("tensorrt", [TENSORRT, CUDA, CPU], (TENSORRT, CPU), "tensorrt"),
    ],
)
def test_the_provider_is_the_one_asked_for_and_auto_the_best_that_is_installed(
    wanted: Provider, available: list[str], asked: tuple[str, ...], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The processor stands behind each; nothing is said of it before a session is opened."""
    installed = Installed(CUDA, TENSORRT)
    runtime = Runtime(1, wanted, available=available, open_session=installed.open)
    assert runtime.in_use is None
    runtime.open(BUNDLE.graph("float"))
    assert (installed.asked, runtime.in_use) == ([(1, asked)], name)
    assert not caplog.records


@pytest.mark.parametrize("wanted", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_installed_is_said_once_with_what_to_install(
    wanted: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """The processor trains instead, and the status says so. This wheel has neither of the two."""
    runtime = Runtime(1, wanted)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert runtime.open(BUNDLE.graph("float")).get_providers() == [CPU]
    (record,) = caplog.records
    assert wanted in record.message
    assert "install" in record.message
    assert runtime.in_use == "cpu"


@pytest.mark.parametrize("installed", [Installed(), Installed(fails=True)], ids=["goes back", "raises"])
def test_a_provider_that_does_not_start_is_tried_once(installed: Installed, caplog: pytest.LogCaptureFixture) -> None:
    """A missing library shows when the first session is made: then and later the processor works."""
    runtime = Runtime(1, "cuda", available=[CUDA, CPU], open_session=installed.open)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            runtime.open(BUNDLE.graph("float"))
    assert [providers for _, providers in installed.asked] == [(CUDA, CPU), (CPU,), (CPU,)]
    (record,) = caplog.records
    assert "does not start" in record.message
    assert runtime.in_use == "cpu"


def test_a_graph_that_no_provider_takes_is_the_graphs_fault(caplog: pytest.LogCaptureFixture) -> None:
    """The provider is not given up for it."""
    runtime = Runtime(1, "cuda", available=[CUDA, CPU], open_session=Installed(CUDA, fails=True).open)
    with pytest.raises(ProtocolError):
        runtime.open(b"not a graph")
    assert runtime.name == "cuda"
    assert not caplog.records


def test_small_models_get_one_thread_and_large_ones_the_cores_of_this_process() -> None:
    """Unless the operator has said how many."""
    auto = Runtime(None)
    assert auto.threads_for(1000) == 1
    assert auto.threads_for(1 << 20) == cores()
    assert {Runtime(3).threads_for(n) for n in (1000, 1 << 20)} == {3}
