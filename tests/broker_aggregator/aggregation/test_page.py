"""docs/choosing-a-rule.md says what the code does: every rule, wrapper and optimizer, its settings, its refusals."""

import re
import tomllib
from dataclasses import replace

import pytest

from broker_aggregator.aggregation.breakdown import declared_f
from broker_aggregator.aggregation.recipes import (
    ALIASES,
    OPTIMIZERS,
    RULES,
    WRAPPERS,
    make_aggregator,
    make_server_optimizer,
    settled,
)
from broker_aggregator.config import decimals
from fl_protocol.errors import ConfigError
from tests.broker_aggregator.aggregation.sets import PLAN
from tests.docs.pages import DOCS, blocks, codes, tables

PAGE = DOCS / "choosing-a-rule.md"


def table(head):
    (found,) = [t for t in tables(PAGE) if t.heads[0] == head]
    return found


def plan_of(fields):
    return replace(PLAN, **decimals(fields))


def test_the_tables_are_those_of_the_code():
    """In the code's order, with what each rule needs."""
    rules = table("rule")
    assert [codes(cell)[0] for cell in rules.column("rule")] == list(RULES)
    for (name, rule), cell in zip(RULES.items(), rules.column("stands f of"), strict=True):
        said = re.fullmatch(r"(\d) f \+ (\d)", cell)
        assert bool(said) == (rule.needs is not None), name
        if rule.needs and said:
            assert [rule.needs(f) for f in range(9)] == [int(said[1]) * f + int(said[2]) for f in range(9)]
    assert [codes(cell)[0] for cell in table("wrapper").column("wrapper")] == list(WRAPPERS)
    assert [codes(cell)[0] for cell in table("optimizer").column("optimizer")] == list(OPTIMIZERS)
    text = PAGE.read_text()
    assert all(f"`{alias}`" in text or f'"{alias}"' in text for alias in ALIASES)


BLOCKS = [block.body for block in blocks(PAGE) if block.language == "toml"]


@pytest.mark.parametrize("body", BLOCKS)
def test_every_block_is_a_plan_that_is_accepted(body):
    """In a fleet of 30, with a buffer of 16 unless it says another."""
    plan = plan_of({"buffer": 16, **tomllib.loads(body)})
    make_aggregator(settled(plan, 30))
    make_server_optimizer(plan)


def test_every_setting_of_the_tables_is_one():
    """Each default there is accepted, and is the one that is taken when nothing is said."""
    for row in table("optimizer").rows:
        name, settings = codes(row[0])[0], dict(re.findall(r"`(\w+)` \(([\d.]+)\)", row[1]))
        said = make_server_optimizer(replace(PLAN, optimizer={"name": name, **settings}))
        assert vars(said) == vars(make_server_optimizer(replace(PLAN, optimizer={"name": name})))
    for row, chain in [(r, codes(r[0])[0]) for r in table("rule").rows] + [
        (r, codes(r[0])[0] + "+median") for r in table("wrapper").rows
    ]:
        settings = dict(re.findall(r"`(\w+)` \(([\d.]+)[;)]", row[2] if len(row) > 4 else row[1]))
        trusted = {"trusted": "a"} if chain == "fltrust" else {}
        for key, value in settings.items():
            extra = {"quantile": {"clip": "quantile"}, "clip_norm": {"clip": "fixed"}}.get(key, {})
            said, silent = (
                vars(make_aggregator(replace(PLAN, rule={"name": chain, **trusted, **extra, **more})).inner)
                for more in ({key: value}, {})
            )
            assert {k: v for k, v in said.items() if k != "inner"} == {k: v for k, v in silent.items() if k != "inner"}


@pytest.mark.parametrize("row", table("plan").rows, ids=lambda row: row[0])
def test_refusals_read_as_on_the_page(row):
    """Word for word, with their hints."""
    fields = tomllib.loads("\n".join(codes(row[0])))
    devices = re.search(r"(\d+) devices", row[0])
    assert devices
    with pytest.raises(ConfigError) as refused:
        settled(plan_of(fields), int(devices[1]))
    assert str(refused.value).replace("\n  hint: ", ". Hint: ") == row[1]


def test_the_table_of_f_is_computed():
    """By the function that the gateway asks."""
    found = table("N")
    sizes = [int(re.findall(r"\d+", head)[-1]) for head in found.heads[2:]]
    for n, share, *cells in found.rows:
        for k, cell in zip(sizes, cells, strict=True):
            assert cell == (
                str(declared_f(k, int(n), float(codes(share)[0] if "`" in share else share))) if k <= int(n) else ""
            )
