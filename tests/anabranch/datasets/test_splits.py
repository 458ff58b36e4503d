"""Every data set: who has what, and that nothing of what tests was seen by who trains."""

import gzip
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.datasets import (
    LOADERS,
    SHIPPED,
    SOURCES,
    ai4i,
    fan_vibration,
    fashion_mnist,
    har,
    heart_disease,
    load,
    ratings,
)
from anabranch.datasets.federation import Examples, stratified
from anabranch.datasets.source import DATASETS, datasets_folder
from fl_protocol.errors import ConfigError
from tests.anabranch.datasets.made_up import idx, write_datasets

REAL = datasets_folder()
# Not everything may lie in this repository; where somebody has it all, every rule here holds for it as well.
HERE = all((REAL / path).is_file() for name in SOURCES if name not in SHIPPED for path in SOURCES[name].files)
SHAPES = {  # one example's x, its dtype, y, its dtype
    "ai4i": ((8,), "float32", (), "int64"),
    "beijing_air": ((24, 16), "float32", (1,), "float32"),
    "fan_anomaly": ((200, 3), "float32", (), "int64"),
    "fan_vibration": ((200, 3), "float32", (), "int64"),
    "fashion_mnist": ((28, 28), "float32", (), "int64"),
    "har": ((128, 9), "float32", (), "int64"),
    "heart_disease": ((26,), "float32", (), "int64"),
    "ratings": ((1,), "int64", (1,), "float32"),
}
CLIENTS = {"ai4i": 30, "beijing_air": 12, "fan_anomaly": 17, "fan_vibration": 17, "fashion_mnist": 1, "har": 18}
CLIENTS |= {"heart_disease": 4, "ratings": 200}


@pytest.fixture(scope="module", params=["made up", "real"] if HERE else ["made up"], autouse=True)
def folder(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = REAL
        if request.param == "made up":
            path = tmp_path_factory.mktemp("datasets")
            write_datasets(path)
        patch.setenv(DATASETS, str(path))
        yield path


def rows(x) -> Counter:
    return Counter(np.ascontiguousarray(one).tobytes() for one in x)


@pytest.mark.parametrize("name", LOADERS)
def test_examples_have_the_shapes_that_models_are_written_for(name):
    federation = load(name)
    parts = [federation.train, federation.validation, federation.test]
    parts += [part for c in federation.everyone for part in (c.train, c.validation, c.test)]
    for x, y in parts:
        assert (x.shape[1:], x.dtype, y.shape[1:], y.dtype) == SHAPES[name]
        assert len(x) == len(y)
        assert np.isfinite(x).all()
        assert np.isfinite(y).all()
        if y.dtype == np.int64:
            assert set(y.tolist()) <= set(range(len(federation.labels)))
        else:
            assert federation.labels == ()
    assert len(federation.clients) == CLIENTS[name]
    assert min(len(part.x) for part in (federation.train, federation.validation, federation.test)) > 0
    assert federation.licence
    assert federation.name == name


@pytest.mark.parametrize("name", LOADERS)
def test_names_are_ids_each_once_and_in_the_order_of_their_numbers(name):
    names = [client.name for client in load(name).everyone]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", n) for n in names)
    numbers = [int(n.rpartition("-")[2]) for n in names if n.rpartition("-")[2].isdecimal()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("name", LOADERS)
def test_the_same_split_each_time(name):
    ratings.load.cache_clear()
    first = load(name)
    ratings.load.cache_clear()
    second = load(name)
    for one, other in zip(first.everyone, second.everyone, strict=True):
        assert one.name == other.name
        for a, b in zip(
            (one.train, one.validation, one.test), (other.train, other.validation, other.test), strict=True
        ):
            np.testing.assert_array_equal(a.x, b.x)
            np.testing.assert_array_equal(a.y, b.y)


@pytest.mark.parametrize("name", ["ai4i", "beijing_air", "fan_anomaly", "fan_vibration", "heart_disease", "ratings"])
def test_the_pool_is_what_the_clients_hold_out(name):
    federation = load(name)
    np.testing.assert_array_equal(federation.validation.x, np.concatenate([c.validation.x for c in federation.clients]))
    np.testing.assert_array_equal(federation.test.y, np.concatenate([c.test.y for c in federation.clients]))


@pytest.mark.parametrize("name", ["fan_anomaly", "fan_vibration", "har", "heart_disease"])
def test_no_example_is_in_two_parts(name):
    """Told by its bytes. Where examples may be alike by nature (cuts, clothes, ratings) other rules hold, below."""
    federation = load(name)
    known = [set(rows(part.x)) for part in (federation.train, federation.validation, federation.test)]
    assert sum(map(len, known)) == len(set.union(*known))


# --- fans ---------------------------------------------------------------------------------------------------
def test_a_fan_has_its_own_recordings_split_in_time():
    federation = load("fan_vibration")
    for client, speed in zip(federation.clients, fan_vibration.SPEEDS, strict=True):
        fan = fan_vibration.load_fan(speed)
        assert client.name == f"fan-{speed}"
        for part, (x, y) in zip((client.train, client.validation, client.test), fan, strict=True):
            np.testing.assert_array_equal(part.x, x)
            np.testing.assert_array_equal(part.y, y)


def test_who_looks_for_anomalies_has_seen_balanced_fans_only():
    """In training and in validation; the test set is that of the labelled task."""
    labelled, federation = load("fan_vibration"), load("fan_anomaly")
    assert set(federation.train.y) == set(federation.validation.y) == {0}
    assert set(federation.test.y) == {0, 1, 2}
    np.testing.assert_array_equal(federation.train.x, labelled.train.x[labelled.train.y == 0])
    np.testing.assert_array_equal(federation.test.x, labelled.test.x)


# --- people -------------------------------------------------------------------------------------------------
def test_validators_are_people_who_may_train_when_nobody_validates():
    federation = load("har")
    people = sorted((*har.PEOPLE, *har.VALIDATORS))
    assert [client.name for client in federation.everyone] == [f"person-{p}" for p in people]
    assert rows(federation.validation.x) == sum((rows(v.train.x) for v in federation.validators), Counter())
    assert not rows(federation.validation.x) & rows(federation.train.x)


# --- hospitals ----------------------------------------------------------------------------------------------
def test_every_patient_is_in_one_split_of_one_hospital():
    federation = load("heart_disease")
    for client in federation.clients:
        parts = (client.train, client.validation, client.test)
        whole = heart_disease._patients(client.name)
        assert sum((rows(part.x) for part in parts), Counter()) == rows(whole.x)
        for label in (0, 1):
            counts = [int((part.y == label).sum()) for part in parts]
            exact = np.array(heart_disease.SHARES) * sum(counts)
            assert np.abs(counts - exact).max() <= 1
    assert sum(len(c.train.x) + len(c.validation.x) + len(c.test.x) for c in federation.clients) == 918


def test_what_is_missing_in_a_patient_is_flagged_and_0():
    text = "63,1,4,?,0,1,2,150,0,2.3,3,?,6,0\n63,1,4,?,0,1,2,150,0,2.3,3,?,6,0\n41,0,2,130,204,0,2,172,0,-1.4,1,0,3,2\n"
    x, y = heart_disease.read_patients(text)
    assert y.tolist() == [0, 1]  # who occurs twice is there once; any grade is the disease
    missing = {"trestbps", "chol", "ca"}  # a cholesterol of 0 as well
    assert [n for n, flag in zip(heart_disease.FEATURES, x[0, 13:], strict=True) if flag] == sorted(
        missing, key=heart_disease.FEATURES.index
    )
    assert x[0, :13].tolist() == pytest.approx([63, 1, 4, 0, 0, 1, 2, 150, 0, 2.3, 3, 0, 6])
    assert x[1].tolist() == pytest.approx([41, 0, 2, 130, 204, 0, 2, 172, 0, -1.4, 1, 0, 3, *[0] * 13])


# --- clothes ------------------------------------------------------------------------------------------------
def test_the_last_training_pictures_validate(folder):
    """By their place in the publisher's files, which tell training and test apart."""
    federation = load("fashion_mnist")
    for part, (x, y) in (
        ("train", Examples.concatenate([federation.train, federation.validation])),
        ("t10k", federation.test),
    ):
        pictures = fashion_mnist.read_idx(folder / f"fashion_mnist/{part}-images-idx3-ubyte.gz")
        np.testing.assert_array_equal(np.rint(255 * x), pictures)
        np.testing.assert_array_equal(y, fashion_mnist.read_idx(folder / f"fashion_mnist/{part}-labels-idx1-ubyte.gz"))
        assert (x.min(), x.max() <= 1) == (0, True)
    assert len(federation.validation.y) == fashion_mnist.NUM_VALIDATION == 5000


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"0", lambda d: b"\1" + d[1:], lambda d: d[:3], lambda d: d[:0]]
)
def test_a_file_that_is_not_what_it_says_is_refused(spoil, tmp_path):
    path = tmp_path / "some.gz"
    path.write_bytes(idx(np.zeros((3, 2, 2))))
    assert fashion_mnist.read_idx(path).shape == (3, 2, 2)
    path.write_bytes(gzip.compress(spoil(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ConfigError, match="not an IDX file"):
        fashion_mnist.read_idx(path)


# --- milling machines ---------------------------------------------------------------------------------------
def test_every_cut_is_in_one_split_of_one_machine():
    federation = load("ai4i")
    x, y, _ = ai4i._cuts()
    assert sum(
        (rows(part.x) for part in (federation.train, federation.validation, federation.test)), Counter()
    ) == rows(x)
    failures = [int(part.y.sum()) for part in (federation.train, federation.validation, federation.test)]
    assert sum(failures) == y.sum() == 339
    assert np.abs(failures - 339 * np.array(ai4i.SHARES)).max() <= 2
    for number, variant in enumerate(ai4i.VARIANTS):
        machines = [c for c in federation.clients if c.name.startswith(f"machine-{variant.lower()}")]
        assert len(machines) == ai4i.MACHINES
        for split in ("train", "validation", "test"):
            parts = [getattr(machine, split) for machine in machines]
            assert all((part.x[:, 5:] == np.eye(3)[number]).all() for part in parts)
            for counts in ([len(part.y) for part in parts], [int(part.y.sum()) for part in parts]):
                assert max(counts) - min(counts) <= 1


def test_columns_that_give_the_answer_away_are_not_there():
    with np.load(Path(ai4i.__file__).parents[1] / "data" / "ai4i2020.npz") as data:
        assert set(data.files) == {"values", "variant", "failure"}
        assert data["values"].shape[1] == len(ai4i.FEATURES) == 5
    assert not {"TWF", "HDF", "PWF", "OSF", "RNF"} & {*ai4i.COLUMNS}


# --- ratings ------------------------------------------------------------------------------------------------
def test_a_person_rates_a_film_once_in_half_stars():
    federation = load("ratings")
    for client in federation.clients:
        films = np.concatenate([part.x[:, 0] for part in (client.train, client.validation, client.test)])
        assert len(set(films.tolist())) == len(films)
        assert ratings.RATED[0] <= len(films) < ratings.RATED[1]
    stars = federation.train.y
    assert set(np.unique(stars).tolist()) <= set(np.arange(1, 5.5, 0.5).tolist())


def test_films_have_a_long_tail_and_ratings_a_reason():
    """A tenth of the films has a quarter of the ratings; who knows a film's other ratings guesses better."""
    (x, y), (vx, vy) = load("ratings").train, load("ratings").validation
    counts = np.bincount(x[:, 0], minlength=ratings.FILMS)
    assert np.sort(counts)[-ratings.FILMS // 10 :].sum() > counts.sum() / 4
    film = (np.bincount(x[:, 0], y[:, 0], ratings.FILMS) + 5 * y.mean()) / (counts + 5)
    by_film, by_mean = np.sqrt(np.mean((film[vx] - vy) ** 2)), np.sqrt(np.mean((y.mean() - vy) ** 2))
    assert ratings.NOISE < by_film < 0.95 * by_mean


# --- stratified ---------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 2**32 - 1))
def test_a_stratified_split_gives_every_row_away_once_and_every_class_alike(y, seed):
    shares, y = (0.6, 0.2, 0.2), np.array([*y, 0], np.int64)
    parts = stratified(y, shares, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    for label in np.unique(y):
        counts = np.array([(y[part] == label).sum() for part in parts])
        assert np.abs(counts - np.array(shares) * counts.sum()).max() <= 1


# --- the registry -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in SOURCES if name not in SHIPPED])
def test_without_the_files_the_operator_hears_the_command_that_gets_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv(DATASETS, str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load(name)
    assert str(tmp_path) in error.value.message
    assert f"python -m models data {name}" in error.value.hint


def test_what_ships_loads_without_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DATASETS, str(tmp_path / "nowhere"))
    assert {*SHIPPED} == {*LOADERS} - {"beijing_air", "fashion_mnist", "har"}
    for name in SHIPPED:
        assert load(name).clients


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no data set 'hart'") as error:
        load("hart")
    assert "heart_disease" in error.value.hint
