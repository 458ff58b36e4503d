"""A disk that fills up: a tmpfs of a few hundred kilobytes, and what it takes to be allowed to mount one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = 4096  # bytes; a tmpfs gives whole pages


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, pages: int = 0) -> None:
        """Leave room for so many pages."""
        self._filler.unlink(missing_ok=True)
        room = os.statvfs(self.path).f_bavail
        with self._filler.open("wb") as file:
            file.write(bytes((room - pages) * PAGE))
        assert os.statvfs(self.path).f_bavail == pages

    def make_room(self) -> None:
        """All of it again."""
        self._filler.unlink()


def on_a_small_disk(kilobytes: int) -> Callable[[Callable[[SmallDisk], None]], Callable[..., None]]:
    """Give a test a `SmallDisk`. Who may not mount runs it in a namespace of their own, where they may."""

    def decorate(test: Callable[[SmallDisk], None]) -> Callable[..., None]:
        def run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
            if os.geteuid():
                return in_a_namespace(request.node.nodeid, tmp_path)
            folder = tmp_path / "disk"
            folder.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
            assert not done.returncode, f"a full disk is tested on a tmpfs; root here may not mount one: {done.stderr}"
            try:
                test(SmallDisk(folder))
            finally:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run

    return decorate


def in_a_namespace(test: str, folder: Path) -> None:
    """Run one test as the root of a new user and mount namespace."""
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={folder / 'inside'}", test]
    command = ["unshare", "--map-root-user", "--mount", *pytest_here]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, (
        "a full disk is tested on a tmpfs: run as root, or allow users their namespaces"
        f" (`unshare -rm true` must work)\n{done.stdout}{done.stderr}"
    )
