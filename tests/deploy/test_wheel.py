"""A gateway that was installed by pip, without a checkout, has all of `deploy`: as `anabranch_deploy`."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip install` builds it."""
    into = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(into), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return next(into.glob("anabranch-*.whl"))


def test_every_file_of_deploy_is_in_it_under_the_name_that_is_ours(wheel: Path) -> None:
    there = {n.removeprefix("anabranch_deploy/") for n in zipfile.ZipFile(wheel).namelist() if "deploy/" in n}
    tracked = subprocess.run(["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {line.removeprefix("deploy/") for line in tracked.stdout.split()}
    assert len(files) > 30
    assert files <= there
    assert not any(name.startswith("deploy/") for name in there)


def test_deploy_calls_itself_by_no_name() -> None:
    """In the wheel it has another one."""
    wrong = [
        p for p in (ROOT / "deploy").rglob("*.py") if re.search(r"^\s*(from|import) deploy\b", p.read_text(), re.M)
    ]
    assert not wrong


def test_a_fresh_environment_sets_up_a_gateway(wheel: Path, tmp_path: Path) -> None:
    """What it depends on is borrowed from this one; anabranch itself is the wheel's."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    site = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    command = [
        "pip",
        "--python",
        str(place / "bin/python"),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        str(wheel),
    ]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    root = tmp_path / "root"
    up = ["gateway", "up", "--root", str(root), "--fleet", "farm", "--name", "gw.local", "--dry-run", "--json"]
    for program in ([str(place / "bin/anabranch-deploy")], [str(place / "bin/python"), "-m", "anabranch_deploy"]):
        done = subprocess.run([*program, *up], cwd=tmp_path, capture_output=True, text=True, timeout=120, env={})
        assert done.returncode == 0, done.stderr
        paths = [change["path"] for change in json.loads(done.stdout)["changes"]]
        assert str(root / "etc/anabranch-gateway/gateway.toml") in paths
    assert not root.exists()
    where = [str(place / "bin/python"), "-c", "import anabranch_deploy; print(anabranch_deploy.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={})
    assert found.stdout.startswith(str(site))
