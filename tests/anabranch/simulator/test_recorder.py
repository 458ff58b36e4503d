"""What the recorder makes of the updates that a gateway records."""

from types import SimpleNamespace

import pytest

from anabranch.simulator.recorder import Recorder
from broker_aggregator import events as g


def record(device, **metrics):
    update, verdict = SimpleNamespace(device=device, seq=0, metrics=metrics), SimpleNamespace(verdict="accepted")
    return g.RecordUpdate(update, verdict, num_bytes=0, norm=1.0, scale=1.0)


@pytest.fixture
def recorder():
    recorder = Recorder()
    nothing = SimpleNamespace(on_store=lambda _: None, line=lambda *_: None)
    nobody = SimpleNamespace(terms={})
    recorder.watch(SimpleNamespace(store=SimpleNamespace(), checker=nothing, trace=nothing, attackers=nobody))
    return recorder


def test_reported_is_each_devices_last_word_weighted_by_its_examples(recorder):
    recorder.take([record("a", value=0.2, validation_examples=10.0), record("b", value=0.5, validation_examples=30.0)])
    assert recorder.reported == pytest.approx((0.2 * 10 + 0.5 * 30) / 40)
    recorder.take([record("a", value=0.9, validation_examples=10.0)])
    assert recorder.reported == pytest.approx((0.9 * 10 + 0.5 * 30) / 40)


def test_who_has_nothing_held_out_reports_nothing(recorder):
    recorder.take([record("a", train_loss=1.0)])
    assert recorder.reported is None
