"""Storms in which every object on its way, however small, lies on a disk: nothing that a storm holds is broken."""

from collections.abc import Iterator

import pytest

from fl_protocol.parts import FileParts
from tests.chaos.storms import CHAOS, FIRST_SEED, storm_of, violations

SEEDS = range(FIRST_SEED, FIRST_SEED + 8)


@pytest.fixture
def put() -> Iterator[list[str]]:
    """The names of all parts that were opened on a disk."""
    opened: list[str] = []
    defaults, make = FileParts.__init__.__kwdefaults__, FileParts.open

    def watched(self: FileParts, name: str, sha256: str, size: int, chunk_size: int) -> object:
        opened.append(name)
        return make(self, name, sha256, size, chunk_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "small", 0)
        patch.setattr(FileParts, "open", watched)
        yield opened


@pytest.mark.parametrize("seed", SEEDS)
def test_storms_break_nothing_with_parts_on_the_disks(put: list[str], seed: int) -> None:
    """Deaths between any two effects, full and failing disks, and all else that a storm does."""
    assert violations(CHAOS, seed) == []
    assert violations(storm_of("kill", "cut", "lose", "disk-full", "disk-fails"), seed) == []
    assert put
