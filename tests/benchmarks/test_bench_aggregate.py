"""The benchmark of aggregation: what it compares, that both sides compute the same, and what it calls met."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its scripts import each other by name

import aggregate_tables
import bench_aggregate
from aggregate_measuring import delta, examples, shapes
from aggregate_ours import Buffer, layout_of, plan_of
from aggregate_processes import Flower, run_case

from broker_aggregator.aggregation import Context
from broker_aggregator.aggregation.recipes import RULES, make_aggregator
from fl_protocol.errors import ConfigError

HERE = Path(__file__).parents[2] / "benchmarks"
OPTIONS = argparse.Namespace(updates=100, size=1_000_000, runs=1, seconds=1.0, least=2, quick=False)


def answer(ms: float, bare: float = 1.0, peak: float = 100.0, sample: float = 1.0) -> dict:
    times = {"rule": [ms, ms], "np.add": [bare, bare]}
    return {"ms": times, "before_mb": 40.0, "peak_mb": peak, "bytes": 9.0, "sample": [sample, 2.0]}


FOUND = {
    "ours/mean/vectors": answer(1.1),
    "ours/mean, unequal/vectors": answer(1.7),
    "ours/mean/none": answer(20),
    "ours/mean/topk share 0.01": answer(2),
    "ours/median/vectors": answer(10, peak=300),
    "ours/median/none": answer(12, peak=300),
    "flower/median/arrays": answer(29, peak=1000),
    "flower/median/bytes": answer(40, peak=1000),
}


def test_every_rule_is_measured_dense_and_sparse() -> None:
    """All that a plan may name, on vectors, on float32 payloads and on those of 1 %."""
    cases = bench_aggregate.cases(OPTIONS, with_flower=False)
    for rule in RULES:
        assert {f"ours/{rule}/{start}" for start in ("vectors", "none", "topk share 0.01")} <= set(cases)


def test_each_case_of_flowers_has_one_of_ours_that_begins_with_the_same() -> None:
    """As many updates of as many parameters, with the same f."""
    cases = bench_aggregate.cases(OPTIONS, with_flower=True)
    theirs = [name for name in cases if name.startswith("flower/")]
    assert {name.split("/")[1] for name in theirs} >= {"mean", "median", "trimmed-mean", "krum", "multi-krum"}
    for name in theirs:
        mine = cases[aggregate_tables.our_case(name)]
        assert [mine[key] for key in ("updates", "size", "f", "equal")] == [
            cases[name][key] for key in ("updates", "size", "f", "equal")
        ]
        assert (mine["codec"] is None) == (cases[name]["from"] == "arrays")


def test_targets_are_met_or_not() -> None:
    """By hand: 1.1 and 1.7 passes, 2.9 and 3.3 times, 0.3 of the memory, 10 times."""
    rows = {row["target"]: (row["measured"], row["met"]) for row in aggregate_tables.targets(FOUND)}
    assert rows == {
        "the mean of equal factors takes at most 1.2 bare passes of np.add": (pytest.approx(1.1), True),
        "the mean of different factors takes at most 1.2 bare passes of np.add": (pytest.approx(1.7), False),
        "median from arrays is 3 times faster than Flower's": (pytest.approx(2.9), False),
        "median adds to the arrays a third of what Flower adds": (pytest.approx(260 / 960), True),
        "median from bytes is 3 times faster than Flower's": (pytest.approx(40 / 12), True),
        "median from bytes peaks at a third of Flower's memory": (pytest.approx(0.3), True),
        "updates of 1 % are averaged 10 times faster than those in none": (pytest.approx(10), True),
    }


def test_the_page_gets_the_tables_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice is as good as once, and what stands around them stays."""
    page = tmp_path / "page.md"
    monkeypatch.setattr(aggregate_tables, "PAGE", page)
    begin, end = aggregate_tables.BEGIN, aggregate_tables.END
    page.write_text(f"# Title\n\nWords.\n\n{begin}\nold\n{end}\n\nMore.\n", "utf-8")
    said = {"command": "python x", "machine": "m", "python": "3", "versions": {"numpy": "2"}}
    result = {"setting": said, "updates": 2, "size": 5, "cases": FOUND, "targets": aggregate_tables.targets(FOUND)}
    aggregate_tables.write_page(result)
    once = page.read_text("utf-8")
    aggregate_tables.write_page(result)
    assert page.read_text("utf-8") == once
    assert once.startswith("# Title\n\nWords.\n")
    assert once.endswith("\nMore.\n")
    assert "old" not in once
    assert "| median | arrays | 10.0 ± 0.0 | 29.0 ± 0.0 | 2.9 | 300 (+260) | 1000 (+960) | 0.30 |" in once


def test_numbers_that_are_not_flowers_are_named() -> None:
    """Else the times would compare nothing."""
    assert not bench_aggregate.disagreements(FOUND)
    (line,) = bench_aggregate.disagreements({**FOUND, "flower/median/arrays": answer(29, sample=1.1)})
    assert "flower/median/arrays" in line


def test_a_case_runs_in_its_own_process() -> None:
    """One of ours: times of the rule and of the bare pass, peaks, and what was made: the median."""
    case = {"side": "ours", "rule": {"name": "median"}, "codec": None, "updates": 5, "size": 500}
    found = run_case({**case, "f": 1, "equal": True, "seconds": 0, "least": 2}, None)
    assert set(found["ms"]) == {"rule", "np.add"}
    assert len(found["ms"]["rule"]) == 2
    assert 0 < found["before_mb"] <= found["peak_mb"] < 1000
    expected = np.median([delta(i, 500) for i in range(5)], axis=0)
    assert np.allclose(found["sample"], expected, rtol=1e-6)


def test_what_a_process_could_not_do_is_told() -> None:
    """With the case and the last words."""
    with pytest.raises(RuntimeError, match="nonsense"):
        run_case(
            {"side": "ours", "rule": {"name": "nonsense"}, "codec": None, "updates": 2, "size": 9, "equal": True}, None
        )


def test_a_place_where_no_environment_can_be_made_is_the_operators_matter(tmp_path: Path) -> None:
    """The folder is a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="failed"):
        Flower(tmp_path / "file")


def test_updates_are_the_same_in_every_process() -> None:
    """Whatever the hash seed."""
    script = "from aggregate_measuring import delta; print(delta(7, 1000).tobytes().hex())"
    said = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=HERE, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{delta(7, 1000).tobytes().hex()}\n".encode()}


@pytest.mark.parametrize("size", [1000, 200_000, 1_000_000])
def test_layers_make_up_the_model(size: int) -> None:
    """One of them holds nearly all."""
    counts = [int(np.prod(shape)) for shape in shapes(size)]
    assert sum(counts) == size == layout_of(size).num_parameters
    assert max(counts) > 0.7 * size


def test_a_buffer_of_payloads_is_one_of_vectors_with_a_codec_between() -> None:
    """The mean of float32 payloads is that of the vectors, to the bit; examples differ where they shall."""
    assert len(set(examples(9, equal=True))) == 1 < len(set(examples(9, equal=False)))
    rule = make_aggregator(plan_of({"name": "mean"}, 9, layout_of(300).fingerprint))
    steps = [
        rule.aggregate({}, Buffer(9, 300, codec, equal=False).updates(), Context(), np.random.default_rng(0))[1]
        for codec in (None, {"name": "none"})
    ]
    assert np.array_equal(*steps)


ALTERNATING = """
import json
import numpy as np
from aggregate_measuring import measure

order = []

def rule():
    order.append("rule")
    np.ones(1 << 20).sum()

def other():
    order.append("other")
    np.ones(5 << 20).sum()

found = measure({"rule": rule, "other": other}, "rule", seconds=0, least=3)
print(json.dumps([order, found]))
"""


def test_turns_alternate_and_the_peak_is_the_rules() -> None:
    """8 MB that the rule holds for a moment are seen, 40 MB of the other turn are not. In a process of its own, since a
    high-water mark is the process's."""
    said = subprocess.run([sys.executable, "-c", ALTERNATING], cwd=HERE, check=True, capture_output=True).stdout
    order, found = json.loads(said)
    assert order == ["rule", *["rule", "other"] * 3]
    assert 6 < found["peak_mb"] - found["before_mb"] < 20
