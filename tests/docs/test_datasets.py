"""docs/datasets.md says what the code has."""

import re

import pytest

from anabranch.datasets import LOADERS, SHIPPED, SOURCES, load
from tests.docs.pages import DOCS, codes, tables

PAGE = DOCS / "datasets.md"


def rows(second_head: str) -> dict[str, tuple[str, ...]]:
    (found,) = [table for table in tables(PAGE) if table.heads[1] == second_head]
    return {codes(row[0])[0]: row[1:] for row in found.rows}


def test_every_data_set_is_described() -> None:
    """And whether it comes with Anabranch."""
    described = rows("clients")
    assert list(described) == list(LOADERS)
    assert {name for name, row in described.items() if row[-1] != "by `data`"} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_its_numbers_are_those_of_the_code(name: str) -> None:
    """Clients, the shape of an example, and how many of them."""
    clients, example, _, sizes, _ = rows("clients")[name]
    federation = load(name)
    assert int(clients.split()[0]) == len(federation.clients)
    assert re.search(r"\([\d, ]+\)", example)[0] == str(federation.test.x.shape[1:])
    parts = (federation.train, federation.validation, federation.test)
    assert sizes == ", ".join(f"{len(part.x):,}" for part in parts)


def test_every_address_is_the_one_that_is_fetched() -> None:
    """Of a set of several files, the folder that they are in."""
    addresses = {name: row[0].split()[0] for name, row in rows("address").items()}
    assert list(addresses) == list(SOURCES)
    for name, address in addresses.items():
        assert all(url.startswith(address) for url in SOURCES[name].urls)
