"""The Dockerfiles: what they promise, without an engine."""

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) in order; comments gone, continued lines joined."""
    lines = (line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(w[0], w[1].strip()) for line in whole.splitlines() if line.strip() and (w := line.split(None, 1))]


def test_there_is_one_for_each_program() -> None:
    assert [path.name.partition(".")[0] for path in DOCKERFILES] == ["agent", "aggregator", "mosquitto", "workshop"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
class TestEveryImage:
    def test_starts_from_a_base_that_has_both_architectures(self, path: Path) -> None:
        bases = {rest.split()[0] for word, rest in instructions(path) if word == "FROM"}
        assert bases == {"${BASE}"}
        assert ("ARG", "BASE=debian:bookworm-slim") in instructions(path)
        assert not re.search(r"amd64|x86_64|arm64|aarch64|--platform", str(instructions(path)))

    def test_needs_no_registry_but_for_its_base_and_no_buildkit(self, path: Path) -> None:
        text = path.read_text()
        assert "syntax=" not in text
        assert "--mount" not in text
        assert "<<" not in text

    def test_runs_as_a_user_that_is_not_root(self, path: Path) -> None:
        last_stage = instructions(path)[max(i for i, (word, _) in enumerate(instructions(path)) if word == "FROM") :]
        users = [rest for word, rest in last_stage if word == "USER"]
        assert users
        assert users[-1] not in ("root", "0")

    def test_looks_after_itself(self, path: Path) -> None:
        assert [rest for word, rest in instructions(path) if word == "HEALTHCHECK"]

    def test_ships_no_pip(self, path: Path) -> None:
        froms = [i for i, (word, _) in enumerate(instructions(path)) if word == "FROM"]
        last = " ".join(rest for _, rest in instructions(path)[froms[-1] :])
        assert "pip" not in last
        assert "python3-venv" not in last

    def test_copies_what_is_there_and_sent(self, path: Path) -> None:
        sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for word, rest in instructions(path):
            if word != "COPY" or "--from" in rest:
                continue
            for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), f"{source} is ignored"
