"""The catalog's models of tables: each sees its data as it should, and learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.datasets import load as load_data
from anabranch.datasets.heart_disease import FEATURES
from fl_protocol.bundle import Bundle
from models.gates import Bench, open_session, run_gates
from models.heart_mlp.model import Config as HeartConfig
from models.heart_mlp.model import HeartMlp
from models.machine_failure.model import Config as FailureConfig
from models.machine_failure.model import MachineFailure
from models.recommender.model import Config as RecommenderConfig
from models.spec import load

SHIPPED = Path(__file__).parents[2] / "anabranch" / "data"
# Each on validation after 300 steps of pooled examples; where one has no person, a recommender knows but films.
LEARNT = {"heart_mlp": 0.82, "machine_failure": 0.7, "recommender": 0.74}


@pytest.fixture(scope="module", params=LEARNT)
def bench(request):
    return Bench(Bundle.read((SHIPPED / f"{request.param}.bundle").read_bytes()), load(request.param))


def test_a_few_hundred_steps_teach_it(bench):
    session = open_session(bench.bundle.graph("evaluate"))
    x, y = bench.examples.validation
    given = {value.name: {**bench.trained, "x": x, "y": y}[value.name] for value in session.get_inputs()}
    value, bound = float(session.run(["correct"], given)[0]) / len(y), LEARNT[bench.spec.name]
    assert value >= bound if bench.spec.metric.better == "higher" else value <= bound


# --- heart_mlp ---------------------------------------------------------------------------------------------
def test_what_is_known_of_a_heart_is_scaled_by_the_training_patients():
    config, (x, _) = HeartConfig(), load_data("heart_disease").train
    values, missing = x[:, : len(FEATURES)], x[:, len(FEATURES) :] > 0
    for i in range(len(FEATURES)):
        known = values[~missing[:, i], i].astype(np.float64)
        assert config.median[i] == np.median(known)
        np.testing.assert_allclose(config.mean[i], known.mean(), atol=0.05)
        np.testing.assert_allclose(config.deviation[i], known.std(), rtol=0.05)


def test_a_missing_value_is_the_median_and_its_flag_is_seen():
    model = HeartMlp(HeartConfig()).eval()
    flagged = torch.zeros(1, 26)
    flagged[0, 13 + 4] = 1.0  # cholesterol is not known
    filled = flagged.clone()
    filled[0, 13 + 4], filled[0, 4] = 0.0, HeartConfig.median[4]
    first = model.hidden.weight.detach()
    with torch.no_grad():
        assert not torch.equal(model(flagged), model(filled))  # by the flag
        first[:, 13 + 4] = 0.0
        torch.testing.assert_close(model(flagged), model(filled))  # and by nothing else


# --- machine_failure ---------------------------------------------------------------------------------------
def test_all_quantities_of_a_cut_are_scaled_by_the_training_cuts():
    x = torch.tensor(load_data("ai4i").train.x)
    model, seen = MachineFailure(FailureConfig()), []
    model.hidden.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    np.testing.assert_allclose(seen[0].mean(0), 0.0, atol=0.03)
    np.testing.assert_allclose(seen[0].std(0), 1.0, atol=0.03)


# --- recommender -------------------------------------------------------------------------------------------
def test_the_mean_is_that_of_the_training_ratings():
    np.testing.assert_allclose(RecommenderConfig.mean, load_data("ratings").train.y.mean(), atol=0.01)


def test_the_recommenders_bundle_passes_every_gate():
    """The other two need minutes for it; the build demands it of them, and test_shipped that they are so built."""
    bundle = Bundle.read((SHIPPED / "recommender.bundle").read_bytes())
    assert [gate for gate in run_gates(bundle, load("recommender")) if not gate.passed] == []


def test_nothing_of_a_person_is_sent():
    """The layer `person` is personal, with the range that it saw; films' factors and qualities are sent."""
    layout = Bundle.read((SHIPPED / "recommender.bundle").read_bytes()).layout
    assert {e.name for e in layout.shared} == {"factors.weight", "quality.weight"}
    assert {e.name.split(".")[0] for e in layout.with_role("personal")} == {"person"}
