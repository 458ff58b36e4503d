"""The benchmark of the catalog's accuracies: its metrics and its statistics. What it trains is tested elsewhere."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its scripts import each other by name

import accuracy_runs
import model_accuracy as bench

labelled = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


@given(labelled)
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(pairs):
    """Property: over all (positive, negative) pairs, a tie counting half."""
    scores, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    wins = [(a > b) + 0.5 * (a == b) for a, b in product(scores[positive], scores[~positive])]
    assert bench.area_under_curve(scores, positive) == pytest.approx(np.mean(wins))


def test_failures_are_judged_by_order_and_by_the_likelier_class():
    """One logit or two; two of three failures found, with one false alarm."""
    y = np.array([1, 1, 1, 0, 0])
    logit = np.array([[2.0], [1.0], [-1.0], [0.5], [-2.0]], np.float32)
    for output in (logit, np.concatenate([-logit / 2, logit / 2], axis=1)):
        found = bench.failures(output, y)
        assert found["F1"] == pytest.approx(2 * 2 / (3 + 3))
        assert found["AUC"] == pytest.approx(5 / 6)


def test_errors_and_baselines_are_in_the_unit_of_y():
    """By hand: root mean square, mean absolute, the last hour, a film's mean."""
    found = bench.errors(np.array([[1.0], [5.0]], np.float32), np.array([[1.0], [2.0]], np.float32))
    assert found == pytest.approx({"RMSE": 3 / np.sqrt(2), "MAE": 1.5})
    hours = np.zeros((2, 24, 3), np.float32)
    hours[:, -1, 0] = 4.0, 6.0
    splits = bench.Splits(*((hours, np.array([[4.0], [3.0]], np.float32)),) * 3)
    assert bench.persistence(splits)["MAE"] == pytest.approx(1.5)
    films = np.repeat([0, 1], 1000)[:, None]
    ratings = np.where(films == 0, 2.0, 4.0).astype(np.float32)
    baselines = bench.means(bench.Splits((films, ratings), (films, ratings), (films, ratings)))
    assert baselines["global mean, RMSE"] == pytest.approx(1.0)
    assert baselines["film's mean, RMSE"] == pytest.approx(0.005, rel=0.02)  # 5 of 1005 towards the mean


def test_networks_agree_by_class_by_sign_or_by_being_near():
    """A share of the examples."""
    logits = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy_runs.agree(logits, logits[::-1], True) == 0.0
    assert accuracy_runs.agree(logits, np.array([[0.0, 9.0]] * 4), True) == 0.5
    assert accuracy_runs.agree(np.array([[1.0], [-1.0]]), np.array([[2.0], [0.5]]), True) == 0.5
    assert accuracy_runs.agree(np.array([1.0, -1.0]), np.array([[0.0, 2.0], [0.0, 0.5]]), True) == 0.5  # (0, z) for z
    values = np.array([0.0, 10.0])  # of deviation 5: within 0.25 is near
    assert accuracy_runs.agree(values, values + np.array([0.2, 0.3]), False) == 0.5


def seeds(*values: float, int8: float | None = None) -> list:
    """What a case gives, seed by seed."""
    test = [{"trained": {"accuracy": v}} | ({} if int8 is None else {"int8": {"accuracy": v + int8}}) for v in values]
    return [{"test": t, "validation": 0.5, "agreement": None if int8 is None else 1.0} for t in test]


def test_differences_are_paired_by_seed():
    """Seeds differ by ten points, their differences by nothing: the interval is that of the differences."""
    of = {"float": seeds(0.8, 0.9), "qat": seeds(0.79, 0.89, int8=-0.01)}
    summary = bench.summarise(of, {"guess": 0.5})
    assert summary["differences"]["int8 - float"]["accuracy"]["mean"] == pytest.approx(-0.02)
    assert summary["differences"]["int8 - float"]["accuracy"]["half_width"] == pytest.approx(0, abs=1e-9)
    assert summary["test"]["float trained"]["accuracy"]["half_width"] > 0.6
    assert "federated int8 - pooled int8" not in summary["differences"]
    table = {row[0]: row[1] for row in bench.rows_of(summary)}
    assert table["pooled, int8"] == "83.00 ± 63.53"
    assert table["int8 - float"] == "-2.00 ± 0.00"
    assert table["baseline: guess"] == "0.500"


def test_a_page_is_written_between_the_marks_of_its_width(tmp_path):
    """What stands around them stays; a page without marks is refused."""
    page = tmp_path / "page.md"
    text = (
        "before\n<!-- model-accuracy -->\n{}\n<!-- /model-accuracy -->\n"
        "<!-- model-accuracy of 4 bits -->\n{}\n<!-- /model-accuracy of 4 bits -->\nafter\n"
    )
    page.write_text(text.format("old", "old"))
    bench.write(page, "new", 8)
    assert page.read_text() == text.format("new", "old")
    bench.write(page, "newer", 4)
    assert page.read_text() == text.format("new", "newer")
    page.write_text("bare")
    with pytest.raises(SystemExit, match="has no"):
        bench.write(page, "new", 8)
