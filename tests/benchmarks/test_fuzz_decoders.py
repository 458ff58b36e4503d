"""A short turn of the fuzzer at every decoder, and that it finds what it is for."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.compression import CODECS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its scripts import each other by name

import fuzz_decoders as bench

TARGETS = {target.name: target for target in bench.targets()}


@pytest.mark.parametrize("name", list(TARGETS))
def test_damaged_inputs_are_read_or_refused(name: str) -> None:
    """600 of them; `python benchmarks/fuzz_decoders.py` tries millions."""
    target = TARGETS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally = bench.fuzz(target, round(600 * target.share), seed=1, measure_every=50)
    assert tally.faults == []
    assert tally.read + sum(tally.refused.values()) == tally.inputs
    assert tally.refused


def test_every_codec_is_a_target() -> None:
    """A new one is fuzzed, or this fails."""
    assert {settings["name"] for settings in bench.CODECS} == set(CODECS)


def test_a_decoder_with_a_fault_is_found() -> None:
    """One that raises something else, one that warns of nothing and takes 30 MB."""

    def careless(payload: bytes) -> int:
        return payload[40]

    def greedy(payload: bytes) -> int:
        return int(np.zeros(4_000_000)[0]) + len(payload)

    for read, said in ((careless, "IndexError"), (greedy, "bytes of memory")):
        tally = bench.fuzz(bench.Target("x", [bytes(range(80))], read), 200, seed=0, measure_every=10)
        assert any(said in fault for fault in tally.faults)
