"""A run's folder: seen while it grows, read back as it was written, and never half believed."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator import results
from anabranch.simulator.results import DEVICES, EXPERIMENT, LEDGER, RELEASES, RUN, ResultsWriter, read_run
from fl_protocol.errors import ConfigError
from tests.anabranch.simulator.synthetic import made_up, write

counts = st.integers(0, 2**53)
numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | numbers
texts = st.text(st.characters(exclude_categories=("Cs",)))


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    """Summary, releases, devices and ledger; what `finish` returns is what `read_run` reads."""
    run = made_up(seed=3, target=0.9)
    written = write(tmp_path / "new" / "run", run)
    assert written == read_run(tmp_path / "new" / "run") == replace(run, folder=tmp_path / "new" / "run")


@given(experiment=texts, faults=st.lists(texts), value=maybe, t_s=numbers, count=counts, version=st.none() | counts)
def test_any_text_and_number_is_read_back(tmp_path_factory, experiment, faults, value, t_s, count, version):
    """Property: line breaks and quotes in texts, floats to the last bit, and None."""
    run = made_up(versions=2)
    summary = replace(run.summary, experiment=experiment, faults=tuple(faults), value=value, replayed=(count, 0))
    releases = tuple(replace(row, t_s=t_s, loss=value) for row in run.releases)
    devices = tuple(replace(row, device=experiment, bytes_up=count) for row in run.devices)
    ledger = tuple(replace(row, version=version, code=experiment) for row in run.ledger)
    folder = tmp_path_factory.mktemp("run")
    assert write(folder, results.Run(folder, summary, releases, devices, ledger)) == results.Run(
        folder, summary, releases, devices, ledger
    )


def test_the_same_run_is_written_as_the_same_bytes(tmp_path):
    """Nothing of the day or the machine gets into the files."""
    for name in "ab":
        write(tmp_path / name, made_up())
    for file in (RUN, RELEASES, DEVICES, LEDGER):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_each_release_can_be_seen_at_once(tmp_path):
    """As a whole line, while the run goes on."""
    with ResultsWriter(tmp_path, "seeds = [0]\n") as writer:
        for number, row in enumerate(made_up(versions=3).releases, 1):
            writer.release(row)
            assert (tmp_path / RELEASES).read_bytes().count(b"\n") == number
        assert (tmp_path / EXPERIMENT).read_text() == "seeds = [0]\n"
    assert not (tmp_path / RUN).exists()


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    """A crash before that leaves a folder that is unfinished, whatever else lies in it."""

    def crash(path, data):
        if path.name == RUN:
            raise OSError("power cut")
        path.write_bytes(data)

    monkeypatch.setattr(results, "write_durably", crash)
    with pytest.raises(OSError, match="power cut"):
        write(tmp_path, made_up())
    assert {path.name for path in tmp_path.iterdir()} == {RELEASES, DEVICES, LEDGER}
    with pytest.raises(ConfigError, match=r"no run\.json: its run goes on, or was ended half-way"):
        read_run(tmp_path)


def test_a_finished_run_is_not_written_over_but_an_unfinished_one_is(tmp_path):
    """Nobody loses results by running again; a run that died leaves nothing in the next one's files."""
    with ResultsWriter(tmp_path) as writer:
        for row in made_up(versions=50).releases:
            writer.release(row)
    assert len(write(tmp_path, made_up(versions=2)).releases) == 2
    with pytest.raises(ConfigError, match="holds the results of a run"):
        ResultsWriter(tmp_path)
    assert len(read_run(tmp_path).releases) == 2


def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path):
    """A file is in its place."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file"):
        ResultsWriter(tmp_path / "file")


@pytest.mark.parametrize("name", [DEVICES, LEDGER, RELEASES])
def test_a_missing_file_is_named(tmp_path, name):
    """Together with what to do."""
    write(tmp_path, made_up(versions=2))
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: No such file") as error:
        read_run(tmp_path)
    assert "copy the whole folder" in error.value.hint


@pytest.mark.parametrize("name", [RUN, DEVICES, LEDGER, RELEASES])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path, name):
    """Cut inside a line, at any byte: an error that names the file."""
    write(tmp_path, made_up(versions=2))
    whole = (tmp_path / name).read_bytes()
    lines = {0, len(whole)} | {at + 1 for at, byte in enumerate(whole) if byte == ord("\n")}
    for end in range(0, len(whole) - 1, 7):
        if end in lines and name != RUN:
            continue
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(ConfigError, match=name):
            read_run(tmp_path)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"null", b'{"version": "two"}', b"\xff", b""])
def test_a_line_that_is_no_release_is_named_by_its_number(tmp_path, line):
    """The first of them."""
    write(tmp_path, made_up(versions=2))
    with (tmp_path / RELEASES).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ConfigError, match=r"releases\.jsonl: line 3: "):
        read_run(tmp_path)


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path):
    """Also one that is not there."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is no run's folder"):
            read_run(folder)


def test_fields_of_a_later_program_are_passed_over(tmp_path):
    """Files of tomorrow are read by the program of today; those of yesterday lack what has a default."""
    written = write(tmp_path, made_up(versions=2))
    text = (tmp_path / RUN).read_text()
    (tmp_path / RUN).write_text(text.replace("{", '{"colour": "red",', 1).replace('"best"', '"worst"'))
    assert read_run(tmp_path) == replace(written, summary=replace(written.summary, best=None))


def test_numbers_of_numpy_are_numbers_and_what_is_not_finite_was_not_measured(tmp_path):
    """JSON knows neither."""
    run = made_up(versions=2)
    first, second = run.releases
    odd = (
        replace(first, value=np.float32(0.5), updates=np.int64(8), loss=inf),
        replace(second, value=nan, t_s=np.float64(2.5)),
    )
    back = write(tmp_path, replace(run, releases=odd)).releases
    assert (back[0].value, back[0].updates, back[0].loss) == (0.5, 8, None)
    assert (back[1].value, back[1].t_s) == (None, 2.5)


def test_a_run_is_ok_without_violations():
    """One is enough."""
    assert made_up().summary.ok
    assert not made_up(violations=("counted twice: d3/ab12/7",)).summary.ok
