"""The benchmark of bytes: what it compares, how it counts, and what it leaves alone."""

import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its scripts import each other by name

import bench_bytes
import bytes_codecs
import bytes_models
import bytes_training as training
from bytes_socket import CountingProxy

import anabranch
from anabranch.simulator.experiment import load_experiment
from fl_protocol.compression import make_compressor
from fl_protocol.tensors import ModelLayout, TensorEntry

DATA = Path(anabranch.__file__).parent / "data"
BASE = """\
name = "base"
bundle = "heart_mlp"
[plan] # as it is
buffer = 2
codec = { name = "none" }
[data]
source = "heart_disease"
[fleet]
devices = 4
[training]
real = true
[stop]
updates = 6
"""


def test_an_arm_changes_its_lines_of_the_plan_and_no_other() -> None:
    """A line that is there is replaced, another is added, both in `[plan]`; what is measured stays the same."""
    plan = {"codec": '{ name = "uq" }', "downlink": '{ name = "uq", step = "2.0" }'}
    text = training.variant(BASE, "other", plan, Path("x.bundle"), updates=9)
    changed = {line for line in text.splitlines() if line not in BASE.splitlines()}
    assert changed == {
        'name = "other"',
        'bundle = "x.bundle"',
        'codec = { name = "uq" }',
        'downlink = { name = "uq", step = "2.0" }',
        "updates = 9",
    }
    assert text.index("[plan]") < text.index("downlink") < text.index("[data]")


@pytest.mark.parametrize("broken", [BASE.replace("[plan]", "[other]"), BASE.replace("bundle =", "bundles =")])
def test_a_base_without_what_is_to_change_is_refused(broken: str) -> None:
    """Rather than compared with itself."""
    with pytest.raises(ValueError, match="the experiment has no"):
        training.variant(broken, "other", {}, Path("x.bundle"))


@pytest.mark.parametrize("model", bench_bytes.ARMS)
def test_arms_are_matched_and_can_be_read(model: str, tmp_path: Path) -> None:
    """Arms of one model differ in codec and downlink only; the first is float32 both ways."""
    (tmp_path / "b").write_bytes((DATA / "heart_mlp.bundle").read_bytes())
    trials = training.prepare(model, bench_bytes.ARMS[model], [0], tmp_path / "b", tmp_path)
    loaded = [load_experiment(trial.path) for trial in trials]
    assert len({trial.path for trial in trials}) == len(trials)
    first = replace(loaded[0], name="")
    assert first.plan["codec"] == first.plan["downlink"] == {"name": "none"}
    for one in loaded[1:]:
        assert {**one.plan, "codec": {"name": "none"}, "downlink": {"name": "none"}} == first.plan
        assert replace(one, name="", plan=first.plan) == first
        assert one.plan != first.plan


def test_float32_is_among_the_arms_that_are_chosen() -> None:
    """Whatever else is: all are compared with it."""
    arms = bench_bytes.ARMS["har_mlp_200k"]
    assert bench_bytes._chosen(arms, None) == list(arms)
    assert [arm.name for arm in bench_bytes._chosen(arms, [arms[2].name])] == ["float32", arms[2].name]


def test_a_run_is_counted_as_it_was_and_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes at the devices' sockets over the updates that they made; what is there stays."""
    monkeypatch.setattr(training, "EXPERIMENTS", tmp_path)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "heart.toml").write_text(BASE)
    arms = [training.Arm("float32", {}), training.Arm("half", {"codec": '{ name = "float16" }'})]
    trials = training.prepare("heart", arms, [0], DATA / "heart_mlp.bundle", tmp_path)
    told: list[str] = []
    training.run_missing(trials, 1, told.append)
    training.run_missing(trials, 1, told.append)
    assert len(told) == 2
    whole, half = (training.costs_of(trial)[0] for trial in trials)
    (run,) = trials[0].runs
    made = sum(device.trained for device in run.devices)
    assert whole.up * made == pytest.approx(run.summary.bytes_up)
    assert whole.float32 == 4 * trials[0].num_parameters
    assert whole.up_ratio < 1, "topics, signatures and states are counted, float32 has nothing around it"
    saved = 2 * trials[0].num_parameters
    assert whole.up - half.up == pytest.approx(saved, rel=0.1)
    assert whole.down > whole.down_later, "the bundle came once"
    head, *rows = training.table(trials)
    assert len(rows) == 2
    assert all(len(row) == len(head) for row in rows)
    assert len(training.at_equal_bytes(trials)) == 3


def test_codecs_are_given_the_same_deltas_and_keep_what_they_leave_out() -> None:
    """Of float32, 32 bits and no error; of a coarse codec, an error below 1: something of each update arrives."""
    layout = ModelLayout((TensorEntry("w", (40, 50), "parameter"),))
    rng = np.random.default_rng(0)
    deltas = tuple(tuple(rng.normal(size=(6, 2000)).astype(np.float32)) for _ in range(2))
    recorded = bytes_codecs.Recorded(layout, deltas)
    exact = bytes_codecs.measure(recorded, {"name": "none"}, 0.01)
    coarse = bytes_codecs.measure(recorded, {"name": "uq", "step": "3.0"}, 0.01)
    assert (exact.bits, exact.error) == (32, 0)
    assert 0 < coarse.error < 1
    assert coarse.bits < 1.5
    for cost in (exact, coarse):
        assert min(cost.encode["min"], cost.decode["min"], cost.copy["min"]) > 0


@pytest.mark.parametrize("settings", bench_bytes.SETTINGS, ids=bytes_codecs.label)
def test_every_codec_that_is_measured_can_be_made(settings: dict[str, str]) -> None:
    """By the settings in the table."""
    layout = ModelLayout((TensorEntry("w", (40, 50), "parameter"),))
    vector = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    compressor = make_compressor(settings, layout)
    assert compressor.decompress(compressor.compress(vector, np.random.default_rng(1))).shape == vector.shape


def test_the_models_are_as_large_as_they_are_called() -> None:
    """200k means 200,000 parameters or more, 1m a million; 38k about that."""
    size = {name: sum(p.numel() for p in spec.module().parameters()) for name, spec in bytes_models.SPECS.items()}
    assert size["har_mlp_38k"] == pytest.approx(38_000, rel=0.02)
    assert min(size["har_mlp_200k"], size["fashion_mlp_200k"]) >= 200_000
    assert size["fashion_mlp_1m"] >= 1_000_000


def test_the_profile_names_what_takes_the_time() -> None:
    """The slowest function stands first."""
    vector = np.zeros(200_000)

    def slow() -> None:
        for _ in range(20):
            vector.sort()

    assert "sort" in bytes_codecs.profile(slow, times=3)[0][0]


def test_the_proxy_counts_each_byte_both_ways() -> None:
    """And passes all of them on."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data + data)

    threading.Thread(target=serve, daemon=True).start()
    proxy = CountingProxy(listener.getsockname()[1])
    sent, got = os.urandom(100_000), b""
    with socket.create_connection(("127.0.0.1", proxy.port)) as device:
        device.settimeout(10)
        writer = threading.Thread(target=device.sendall, args=(sent,))
        writer.start()
        while len(got) < 2 * len(sent) and (data := device.recv(1 << 16)):
            got += data
        writer.join()
    proxy.close()
    listener.close()
    assert (proxy.up, proxy.down, len(got)) == (len(sent), 2 * len(sent), 2 * len(sent))


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    """What stood there is replaced, the rest stays; a page without the marks is refused."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench-bytes socket -->\nold\n<!-- /bench-bytes socket -->\nz\n")
    bench_bytes.write_page(page, {"bench-bytes socket": "| new |"})
    assert page.read_text() == "a\n<!-- bench-bytes socket -->\n| new |\n<!-- /bench-bytes socket -->\nz\n"
    with pytest.raises(SystemExit, match="no marks"):
        bench_bytes.write_page(page, {"bench-bytes codecs": "x"})


@pytest.mark.parametrize("part", bench_bytes.PARTS)
def test_the_page_has_a_place_for_every_part(part: str) -> None:
    """docs/choosing-a-codec.md."""
    text = bench_bytes.PAGE.read_text()
    assert f"<!-- bench-bytes {part} -->\n" in text
    assert f"<!-- /bench-bytes {part} -->" in text
