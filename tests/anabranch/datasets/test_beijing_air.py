"""Windows of hours: what a station knew, when, and never more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.datasets import beijing_air, load
from anabranch.datasets.beijing_air import AHEAD, COLUMNS, FRESH, HOURS, READINGS, STRIDE, windows
from anabranch.datasets.source import DATASETS
from tests.anabranch.datasets.made_up import RUNS, write_datasets

PM, CLOCK = READINGS.index("PM2.5"), READINGS.index("PRES")


@given(st.integers(0, 90), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_window_is_what_was_known_then_and_its_target_is_six_hours_later(hours, missing, seed):
    """Held against the rule, written out hour by hour."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(hours, 11)).astype(np.float32)
    values[rng.random((hours, 11)) < missing] = np.nan
    wind, hour = rng.integers(-1, 16, hours).astype(np.int8), (np.arange(hours) % 24).astype(np.int16)
    expected = []
    for start in range(0, hours - HOURS - AHEAD + 1, STRIDE):
        target = values[start + HOURS - 1 + AHEAD, PM]
        if np.isnan(target) or np.isnan(values[: start + 1]).all(axis=0).any():
            continue
        window = np.zeros((HOURS, len(COLUMNS)))
        for i, now in enumerate(range(start, start + HOURS)):
            read = [max(t for t in range(now + 1) if not np.isnan(values[t, c])) for c in range(11)]
            window[i, :11] = [values[t, c] for c, t in enumerate(read)]
            angle = 2 * np.pi * wind[now] / 16
            window[i, 11:13] = (np.sin(angle), np.cos(angle)) if wind[now] >= 0 else (0, 0)
            window[i, 13:15] = np.sin(2 * np.pi * hour[now] / 24), np.cos(2 * np.pi * hour[now] / 24)
            window[i, 15] = sum(now - t > FRESH for t in read) / 11
        expected.append((window, target))
    x, y = windows(values, wind, hour)
    assert (x.shape, y.shape) == ((len(expected), HOURS, len(COLUMNS)), (len(expected), 1))
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    for one, target, (window, wanted) in zip(x, y, expected, strict=True):
        np.testing.assert_allclose(one, window, atol=1e-6)
        assert target[0] == wanted


@given(st.integers(40, 80), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_the_future_changes_no_window_that_is_over(hours, seed):
    """Whatever is measured from an hour on, windows that ended before keep every value."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(hours, 11)).astype(np.float32)
    values[rng.random((hours, 11)) < 0.2] = np.nan
    values[:, PM] = rng.normal(size=hours)
    wind, hour = np.zeros(hours, np.int8), np.zeros(hours, np.int16)
    border = int(rng.integers(HOURS, hours))
    other = values.copy()
    other[border:] = 7
    before, after = windows(values, wind, hour).x, windows(other, wind, hour).x
    ended = sum(
        start + HOURS <= border and not np.isnan(values[: start + 1]).all(axis=0).any()
        for start in range(0, hours - HOURS - AHEAD + 1, STRIDE)
    )
    np.testing.assert_array_equal(before[:ended], after[:ended])


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_datasets(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATASETS, str(folder))
        yield load("beijing_air")


def test_no_window_crosses_a_border_in_time(federation):
    """The made-up pressure counts hours: a part's windows, their targets included, stay within the part's hours."""
    first = np.concatenate([[0], np.cumsum([hours for _, hours in RUNS])])
    for client in federation.clients:
        for part, start, end in zip((client.train, client.validation, client.test), first, first[1:], strict=False):
            clock = part.x[:, :, CLOCK]
            assert (clock.min(), clock.max() + AHEAD) >= (start, 0)
            assert clock.max() + AHEAD < end
            assert (clock[:, 0] >= start).all()
            assert (np.diff(clock, axis=1) <= HOURS).all()
            assert set((clock[:, -1] - clock[:, 0]).tolist()) <= set(range(HOURS + 1))


def test_parts_begin_in_the_months_that_the_page_says():
    assert beijing_air._PARTS == ((201303, 201601), (201601, 201607), (201607, 201703))
