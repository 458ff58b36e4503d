"""`python -m models data`: what is published becomes what loaders read, or nothing is written."""

import http.server
import io
import socket
import threading
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.datasets import SOURCES, load
from anabranch.datasets.source import DATASETS, digest, npz
from fl_protocol.errors import ConfigError
from models import __main__ as cli
from models import archives, data
from tests.anabranch.datasets.made_up import AS_SHIPPED, PUBLISHED, Members, digests, zipped


def run(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["models", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def written(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Every data set as its publisher has it, in a folder: an archive, or files."""
    folders = {}
    for name, make in PUBLISHED.items():
        folders[name] = tmp_path_factory.mktemp(name)
        members = make() if name == "fashion_mnist" else {"some archive.zip": zipped(make())}
        for path, content in members.items():
            (folders[name] / path).write_bytes(content)
    return folders


def made_up_source(monkeypatch, name):
    """The data set's source, with the SHA-256 of what is made up in place of the real ones."""
    source = SOURCES[name]
    if name not in AS_SHIPPED:
        source = replace(source, files=digests(source.convert(Members(PUBLISHED[name]()))))
    monkeypatch.setattr(data, "SOURCES", {**SOURCES, name: source})
    return source


# --- conversions --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_becomes_what_is_read(name, published, tmp_path, monkeypatch, capsys):
    """From the archive, and then from what came of it; what ships has the SHA-256 of the real data set."""
    source = made_up_source(monkeypatch, name)
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(monkeypatch, "data", name, "--from", published[name], "--to", first) == 0
    assert digests(written(first)) == source.files
    assert ("nothing needs these files" in capsys.readouterr().out) == (name in AS_SHIPPED)
    assert run(monkeypatch, "data", name, "--from", first, "--to", second) == 0
    assert written(second) == written(first)
    monkeypatch.setenv(DATASETS, str(first))
    assert load(name).clients


def test_what_ships_is_the_data_that_the_registry_knows():
    """Bytes for bytes: the arrays in the repository, and the hospitals' tables."""
    shipped = cli.SHIPPED
    files = {"ai4i": ["ai4i2020.npz"], "fan_vibration": ["fan_vibration.npz"]}
    files["heart_disease"] = list(SOURCES["heart_disease"].files)
    for name, paths in files.items():
        found = [digest(path, (shipped / path).read_bytes()) for path in paths]
        assert found == [*SOURCES[name].files.values()]


def test_conversions_keep_every_value():
    """Text of a made-up archive and the arrays that come of it, cell by cell, for a few of them."""
    members = Members(PUBLISHED["har"]())
    with np.load(io.BytesIO(SOURCES["har"].convert(members)["uci_har.npz"])) as har:
        assert har["x"].shape == (360, 9, 128)
        assert har["is_test"].sum() == 108
        line = members.read("body_gyro_y_test.txt").decode().splitlines()[5]
        np.testing.assert_array_equal(har["x"][252 + 5, 4], np.array(line.split(), np.float32))
        assert har["y"][:4].tolist() == [0, 0, 1, 1]
    members = Members(PUBLISHED["beijing_air"]())
    with np.load(io.BytesIO(SOURCES["beijing_air"].convert(members)["beijing_air/beijing_air.npz"])) as air:
        cells = members.read("PRSA_Data_Gucheng_*.csv").decode().splitlines()[100].split(",")
        readings = [np.nan if cell == "NA" else float(cell) for cell in (*cells[5:15], cells[16])]
        np.testing.assert_array_equal(air["values"][5, 99], np.array(readings, np.float32))
        winds = {"NA": -1, '"E"': 4, '"NNW"': 15}
        assert air["wind_dir"][5, 99] == winds[cells[15]]
        assert air["time"][99].tolist() == [int(cell) for cell in cells[1:5]]


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [
        ("fan_vibration", "accelerometer.csv", b"a,b,c,d,e\n1,2,3,4,5\n"),
        ("fan_vibration", "accelerometer.csv", b"wconfid,pctid,x,y,z\n1,2,3,4\n"),
        ("fan_vibration", "accelerometer.csv", b"wconfid,pctid,x,y,z\n1,2,3,4,much\n"),
        ("ai4i", "ai4i2020.csv", b"UDI,Type\n1,L\n"),
        ("ai4i", "ai4i2020.csv", b"\xff\xfe"),
    ],
)
def test_another_format_is_refused(name, path, content, tmp_path, monkeypatch, capsys):
    (tmp_path / path).write_bytes(content)
    assert run(monkeypatch, "data", name, "--from", tmp_path, "--to", tmp_path / "out") == 2
    assert "hint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- nothing but the real thing -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in AS_SHIPPED])
def test_what_is_not_the_real_data_set_is_not_written(name, published, tmp_path, monkeypatch, capsys):
    """The made-up sets are in the right format; their SHA-256 is not."""
    assert run(monkeypatch, "data", name, "--from", published[name], "--to", tmp_path / "out") == 2
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_changed_value_of_one_file_keeps_all_of_them_away(tmp_path, monkeypatch, capsys):
    """The fourth hospital's file differs in one digit; the first three are not written either."""
    members = PUBLISHED["heart_disease"]()
    members["processed.va.data"] = members["processed.va.data"].replace(b"63", b"64", 1)
    (tmp_path / "heart+disease.zip").write_bytes(zipped(members))
    assert run(monkeypatch, "data", "heart_disease", "--from", tmp_path, "--to", tmp_path / "out") == 2
    assert "processed.va.data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@given(
    st.binary(max_size=300)
    | st.builds(lambda b, n: npz(x=np.zeros(3))[: n % 300] + b, st.binary(max_size=9), st.integers())
)
@settings(deadline=None)
def test_rubbish_in_place_of_arrays_is_refused(content):
    source = replace(SOURCES["har"], files={"uci_har.npz": "0" * 64})
    with pytest.raises(ConfigError):
        data.verify(source, {"uci_har.npz": content})


def test_arrays_that_would_run_code_are_refused():
    """Nothing is unpickled, whatever a file says."""
    file = io.BytesIO()
    np.savez(file, x=np.array([{}], object))
    with pytest.raises(ConfigError, match="cannot be read"):
        data.verify(replace(SOURCES["har"], files={"a.npz": "0"}), {"a.npz": file.getvalue()})


def test_the_digest_is_of_the_arrays_not_of_their_compression():
    x, plain = np.arange(6, dtype=np.float32).reshape(2, 3), io.BytesIO()
    np.savez(plain, x=x)
    assert digest("a.npz", plain.getvalue()) == digest("a.npz", npz(x=x))
    others = [npz(y=x), npz(x=x.T), npz(x=x.astype(">f4")), npz(x=x + 1), npz(x=x, y=x)]
    assert len({digest("a.npz", other) for other in [npz(x=x), *others]}) == 6
    assert digest("a.csv", npz(x=x)) != digest("a.npz", npz(x=x))


# --- over the network ---------------------------------------------------------------------------------------
@pytest.fixture
def server():
    """A web server on a free port: what it serves, by path, is the test's; `short` promises more than it gives."""

    class Pages(http.server.BaseHTTPRequestHandler):
        pages: ClassVar[dict[str, bytes]] = {}
        short = 0

        def do_GET(self):
            page = self.pages.get(self.path)
            self.send_response(200 if page is not None else 404)
            self.send_header("Content-Length", str(len(page or b"") + self.short))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Pages
        running.shutdown()
        thread.join()


def ignore(done, of):
    pass


def test_a_data_set_is_fetched_verified_and_written(server, tmp_path, monkeypatch, capsys):
    """By the command, from a server; then from one that has another file."""
    address, pages = server
    pages.pages["/static/ai4i+2020.zip"] = zipped(PUBLISHED["ai4i"]())
    source = replace(SOURCES["ai4i"], urls=(f"{address}/static/ai4i+2020.zip",))
    monkeypatch.setattr(data, "SOURCES", {"ai4i": source})
    monkeypatch.setenv(DATASETS, str(tmp_path))
    assert run(monkeypatch, "data", "ai4i") == 0
    assert "verified" in capsys.readouterr().out
    assert digests(written(tmp_path)) == source.files
    pages.pages["/static/ai4i+2020.zip"] = b"<html>moved</html>"
    assert run(monkeypatch, "data", "ai4i", "--to", tmp_path / "other") == 2
    assert "not a zip archive" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_download_is_bounded_and_complete_or_refused(server):
    address, pages = server
    pages.pages |= {"/x": bytes(100_000)}
    seen = []
    assert data.fetch(f"{address}/x", 100_000, lambda done, of: seen.append((done, of))) == bytes(100_000)
    assert seen[-1] == (100_000, 100_000)
    with pytest.raises(ConfigError, match="larger than 99,999 bytes"):
        data.fetch(f"{address}/x", 99_999, ignore)
    with pytest.raises(ConfigError, match="404"):
        data.fetch(f"{address}/y", 100_000, ignore)
    pages.short = 1
    with pytest.raises(ConfigError, match="100,000 of 100,001"):
        data.fetch(f"{address}/x", 200_000, ignore)


def test_a_silent_server_is_given_up():
    """It accepts, and says nothing: the wait ends with the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(ConfigError, match="timed out"):
        data.fetch(f"http://127.0.0.1:{deaf.getsockname()[1]}/x", 10, ignore, timeout_s=0.1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x", "/etc/passwd"])
def test_other_addresses_than_the_web_s_are_refused(url):
    with pytest.raises(ConfigError, match="not an http"):
        data.fetch(url, 10, ignore)


def test_every_source_is_at_an_address_of_the_web_and_within_bounds():
    for source in SOURCES.values():
        assert all(url.startswith(("https://archive.ics.uci.edu/", "http://fashion-mnist.s3")) for url in source.urls)
        assert source.max_bytes <= archives.MAX_FILE_BYTES
        assert all(len(sha) == 64 for sha in source.files.values())


@pytest.mark.parametrize(("name", "said"), [("ratings", "ships with Anabranch"), ("nope", "no data set 'nope'")])
def test_where_there_is_nothing_to_fetch_the_operator_hears_why(name, said, monkeypatch, capsys):
    assert run(monkeypatch, "data", name) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_written_is_named(published, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    assert run(monkeypatch, "data", "ai4i", "--from", published["ai4i"], "--to", tmp_path / "file" / "x") == 2
    assert "--to" in capsys.readouterr().err
