"""onnxruntime on this device: sessions on the provider that the operator asked for, and a loop of training steps.

The only file of the agent that imports onnxruntime, and only when the first graph is loaded: an idle device stays
small.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.limits import cores
from edge_agent.logs import LEAVES
from edge_agent.pages import drop_untouched_text
from edge_agent.training import Provider
from fl_protocol.errors import Code, ProtocolError

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
# `auto` takes CUDA where the installed onnxruntime has it; TensorRT builds an engine for minutes, so it must be named.
_NAMES = {"auto": "CUDAExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_INSTALL = "install an onnxruntime that has it (`onnxruntime-gpu`; on a Jetson the wheel of its JetPack)"
# Below so many parameters a second thread costs more than it brings: a step of the catalog's models took 1.04 to 1.5
# times as long on two threads, layers of 256 x 256 0.90, of 512 x 512 0.62 (benchmarks/bench_train.py).
_SMALL_MODEL = 1 << 18

log = logging.getLogger("edge_agent")

Open = Callable[[bytes, int, Sequence[str]], Any]  # graph, threads, providers -> session


def open_session(graph: bytes, threads: int, providers: Sequence[str] = (CPU,)) -> "onnxruntime.InferenceSession":
    """A session in little memory. Raises `ProtocolError`: E_SCHEMA for a graph that onnxruntime refuses, E_SIZE."""
    import onnxruntime as ort

    drop_untouched_text()  # loading it ran through code that nothing needs again
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # see _share_arena
    options.add_session_config_entry("session.use_env_allocators", "1")
    _share_arena()
    options.log_severity_level = 4  # what fails is raised, and told by us
    try:
        session = ort.InferenceSession(graph, options, providers=list(providers))
    except Exception as error:  # onnxruntime has no common base class
        raise _refusal("onnxruntime refuses the graph", error) from None
    drop_untouched_text()  # and so did the making of a session
    return session


@cache
def _share_arena() -> None:
    """One arena for all sessions of this process, which grows by what is asked for and no more.

    Measured on fashion_dscnn, batches of 32, peak of the process: 105 to 140 MB without an arena, where glibc's heap
    falls to pieces; 109 MB with onnxruntime's own, which doubles at each step; 102 MB with this one and memory
    patterns, which are one more block for each size of a batch; 89 MB with this one alone. The price of that is some
    10 microseconds a step, a tenth to a fifth of the smallest models' step.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_requested = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": 1 << 16}
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(as_requested))


def run(
    session: "onnxruntime.InferenceSession", outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """One run of a graph. Raises `ProtocolError`: E_SCHEMA where it fails at work, E_SIZE where memory runs out."""
    try:
        values: list[NDArray[Any]] = session.run(outputs, dict(feeds))
    except Exception as error:  # onnxruntime has no common base class
        raise _refusal("the graph failed", error) from None
    return values


class Runtime:
    """Opens sessions as the operator's configuration and this device allow.

    `threads=None` leaves their number to the model's size and the cores that this process may use. `available` are the
    providers of the installed onnxruntime; `open_session` makes the sessions.
    """

    def __init__(
        self,
        threads: int | None = 1,
        provider: Provider = "cpu",
        *,
        available: Sequence[str] | None = None,
        open_session: Open = open_session,
    ) -> None:
        self._threads, self._wanted = threads, provider
        self._available, self._open = available, open_session
        self._provider: str | None = None  # once it is known
        self._used = False

    def open(self, graph: bytes, num_parameters: int = 0) -> Any:
        """A session; on the processor where the wanted provider is missing or does not start.

        Raises `ProtocolError` as `open_session` does.
        """
        self._used, threads = True, self.threads_for(num_parameters)
        if self.provider != CPU:
            try:
                session = self._open(graph, threads, (self.provider, CPU))
                if self.provider in session.get_providers():
                    return session
                error = "onnxruntime went back to the processor"
            except ProtocolError as refusal:
                error = refusal.message
            session = self._open(graph, threads, (CPU,))  # raises where the graph is at fault, not the provider
            self._fall_back(f"does not start ({error})")
            return session
        return self._open(graph, threads, (CPU,))

    def threads_for(self, num_parameters: int) -> int:
        """How many threads a model of that size gets."""
        if self._threads is not None:
            return self._threads
        return cores() if num_parameters >= _SMALL_MODEL else 1

    @property
    def provider(self) -> str:
        """The execution provider in use, by onnxruntime's name for it."""
        if self._provider is None:
            wanted = _NAMES.get(self._wanted, CPU)
            available = [CPU] if wanted == CPU else self._available or _available()
            self._provider = wanted
            if wanted not in available and self._wanted == "auto":
                self._provider = CPU
            elif wanted not in available:
                self._fall_back("is not in the installed onnxruntime")
        return self._provider

    @property
    def name(self) -> str:
        """The provider in use, as the configuration names it."""
        return next((name for name, full in _NAMES.items() if full == self.provider and name != "auto"), "cpu")

    @property
    def in_use(self) -> str | None:
        """`name`, once a session was opened: to ask earlier would load onnxruntime."""
        return self.name if self._used else None

    def _fall_back(self, why: str) -> None:
        text = f"the provider {self._wanted} {why}; the processor is used instead: {_INSTALL}"
        log.warning("%s", text, extra=LEAVES)
        self._provider = CPU


class StepLoop:
    """A training graph that goes on from its own results: `state` holds the entries, `fixed` what stays as it is.

    Two bindings take turns, each writing what the other reads next, so that no tensor is copied between steps; the
    bits are those of `session.run`, in 0.8 to 0.95 of its time for the shipped models. Other providers than the
    processor copy what is bound at the moment of binding, so there `session.run` does the work (`copies`).
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        state: Mapping[str, NDArray[np.float32]],
        fixed: Mapping[str, NDArray[Any]],
        *,
        copies: bool | None = None,
    ) -> None:
        self._session, self._fixed = session, dict(fixed)
        self._state = {name: np.array(value, np.float32, order="C") for name, value in state.items()}
        self._loss = np.zeros((), np.float32)
        self._correct = np.zeros((), np.float32)
        self._copies = session.get_providers()[0] != CPU if copies is None else copies
        if not self._copies:
            self._next = {name: np.empty_like(value) for name, value in self._state.items()}
            self._turns = self._bind(self._state, self._next), self._bind(self._next, self._state)

    @property
    def state(self) -> Mapping[str, NDArray[np.float32]]:
        """The entries as the last step left them; the next step writes over them."""
        return self._state

    def step(self, batch: Mapping[str, NDArray[Any]], *, give_back: bool = False) -> float:
        """One step; the loss of the batch before it. Raises `ProtocolError` as `run` does.

        `give_back`: after it, the arena keeps no memory that it does not need.
        """
        if self._copies:
            *following, self._loss, _ = run(self._session, None, {**self._state, **self._fixed, **batch})
            self._state = dict(zip(self._state, following, strict=True))
            return float(self._loss)
        binding = self._turns[0]
        try:
            for name, value in batch.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            self._session.run_with_iobinding(binding, _giving_back() if give_back else None)
        except Exception as error:  # onnxruntime has no common base class
            raise _refusal("the graph failed", error) from None
        self._turns = self._turns[::-1]
        self._state, self._next = self._next, self._state
        return float(self._loss)

    def _bind(self, before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> Any:
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        for name, value in {**before, **self._fixed}.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value))
        results = {f"{name}.next": value for name, value in after.items()}
        for name, value in {**results, "loss": self._loss, "correct": self._correct}.items():
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(value))
        return binding


def _giving_back() -> Any:
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _refusal(what: str, error: Exception) -> ProtocolError:
    text = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return ProtocolError(Code.SIZE, f"{what}: it needs more memory than this device allows")
    return ProtocolError(Code.SCHEMA, f"{what}: {text}"[:400])


def _available() -> Sequence[str]:
    import onnxruntime as ort

    providers: list[str] = ort.get_available_providers()
    return providers
