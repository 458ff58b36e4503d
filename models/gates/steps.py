"""Gates on one training step, in onnxruntime and in torch.

The reference is torch in float64. Float32 runs differ among themselves, so no gate asks for equality.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from models.gates.bench import Arrays, Bench, Gate, distance, in_torch, train_onnx, train_torch
from models.gates.codes import codes_apart, codes_of, recording, replaying
from models.step import Step

BATCHES = (32, 5, 1)
LARGEST_DIFFERENCE = 1e-5  # of a parameter, as a share of its tensor's largest (at least 1)
CODES_APART = 1e-4  # the share of codes that may differ, each chosen from the same inputs
CODE_BATCHES = 10  # of each size: one code of a single small batch would be more than that share


def one_step_gate(bench: Bench, step: Step, session: onnxruntime.InferenceSession, size: int) -> Iterator[Gate]:
    """Every result of a step, and the parameters by their largest difference.

    Results may be as far from float64 as those of torch float32 are, within a small factor; the parameters within
    `LARGEST_DIFFERENCE`. Where a gradient is nothing but rounding errors (a bias before batch normalisation) Adam makes
    whole steps of them: then torch float32 is as far away, and that is allowed.

    With fake quantization, float64 goes on with the codes that onnxruntime chose (`codes_gate` says whether these are
    right): where it chose its own, one code in a million would fall otherwise, in torch float32 as well, and hide an
    error a thousand times as small. The first measurement is shown with its own codes, too.
    """
    given = {**bench.trained, **next(bench.batches(size, seed=size)), **bench.hyper(), **bench.fed(size)}
    ours, theirs = train_onnx(session, given), train_torch(step, given, torch.float32)
    own = distance(ours, train_torch(step, given, torch.float64))
    if step.quantized:
        given |= codes_of(train_onnx(bench.recording, given))
        both = (_replayed(bench, given, dtype) for dtype in (torch.float32, torch.float64))
        theirs, reference = ({name: array for name, array in run.items() if name in ours} for run in both)
    else:
        reference = train_torch(step, given, torch.float64)
    apart, usual = (distance(result, reference) for result in (ours, theirs))
    our_largest, their_largest = (_largest(result, reference, step.trained) for result in (ours, theirs))
    allowed, bound = 3 * usual + (1e-7 if step.quantized else 1e-8), max(LARGEST_DIFFERENCE, their_largest)
    yield Gate(
        f"one step, {'int8-aware' if step.quantized else 'float'} network, batch {size}",
        f"{apart:.1e} from float64{f' ({own:.1e} with its own codes)' if step.quantized else ''}, "
        f"parameters by at most {our_largest:.1e}",
        f"{allowed:.1e} (torch float32: {usual:.1e}), {bound:.0e}",
        apart <= allowed and our_largest <= bound,
    )


def codes_gate(bench: Bench) -> Iterator[Gate]:
    """Codes that a step works with and leaves behind, against those that torch float64 chooses from the same inputs.

    Counted are the codes of all operands that the layers round in the forward pass, and the weights' codes in the int8
    model after the step. Shown, too, is how many differ where float64 goes its own way from the examples on, and how
    many of torch float32's do: in a deep network one code moves others, so that nothing can be asked of them.
    """
    function = recording(Step(bench.spec))
    apart, total = np.zeros(3, np.int64), 0  # of onnxruntime from the same inputs; from the examples on; torch float32
    for size in BATCHES:
        for number, batch in zip(range(CODE_BATCHES), bench.batches(size, seed=100 + size), strict=False):
            given = {**bench.trained, **batch, **bench.hyper(), **bench.fed(number)}
            ours = train_onnx(bench.recording, given)
            same = _replayed(bench, {**given, **codes_of(ours)}, torch.float64)
            exact, single = (
                in_torch(function, given, bench.step.constants, dtype) for dtype in (torch.float64, torch.float32)
            )
            apart += [codes_apart(a, b) for a, b in ((ours, same), (ours, exact), (single, exact))]
            total += sum(array.size for array in codes_of(exact).values())
    share, alone, theirs = apart / max(total, 1)
    yield Gate(
        "codes of a step",
        f"{share:.1e} of {total:,} differ from float64's "
        f"(from the examples on {alone:.1e}, torch float32's {theirs:.1e})",
        f"{CODES_APART:.0e}",
        bool(share <= CODES_APART),
    )


def _replayed(bench: Bench, given: Arrays, dtype: torch.dtype) -> Arrays:
    return in_torch(replaying(Step(bench.spec)), given, bench.step.constants, dtype)


def _largest(result: Mapping[str, NDArray[Any]], exact: Mapping[str, NDArray[Any]], names: Iterable[str]) -> float:
    pairs = ((result[f"{name}.next"], exact[f"{name}.next"]) for name in names)
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)
