"""Transactions over dicts: whole or not at all, in order, and no longer remembered once synced."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.simulator.journal import Journal, NoRoom
from anabranch.simulator.power import PowerCut, never

changes = st.tuples(st.sampled_from("xy"), st.integers(0, 3), st.none() | st.integers(0, 9))
"""(table, key, value), None: delete."""


class Tables(Journal[str]):
    """Two tables."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.x, self.y = {}, {}

    def write(self, effect: str, *writes) -> None:
        """One effect."""
        for table, key, value in writes:
            rows = getattr(self, table)
            if value is not None:
                self._set(rows, key, value)
            elif key in rows:
                self._delete(rows, key)
        self._done(effect)

    def do(self, effect: str, *writes) -> None:
        """One transaction."""
        with self.transaction():
            self.write(effect, *writes)

    def state(self):
        """A copy of all."""
        return dict(self.x), dict(self.y)


@given(st.lists(st.lists(changes, max_size=5), max_size=6), st.lists(changes, max_size=5), st.integers(0, 2**32 - 1))
def test_a_power_cut_leaves_some_first_transactions(transactions, last, seed) -> None:
    """Of those that no fsync followed; of an open one nothing. What survives is told, in order, and just that."""
    tables, told = Tables(never, synchronous=False), []
    tables.on_durable = told.extend
    states, wrote = [tables.state()], []
    for number, writes in enumerate(transactions):
        tables.do(str(number), *writes)
        if len(tables._committed) == len(states):  # it changed something
            wrote.append(str(number))
            states.append(tables.state())
    with pytest.raises(PowerCut), tables.transaction():
        cut_short(tables, last)
    tables.die("power", np.random.default_rng(seed))
    assert tables.state() == states[len(told)]
    assert told == wrote[: len(told)]
    tables.do("later", ("x", 0, 1))


@given(st.lists(st.lists(changes, max_size=5), max_size=6), st.lists(changes, max_size=5), st.booleans())
def test_kill_9_leaves_all_that_was_committed(transactions, last, synchronous) -> None:
    """Synced or not; of an open one nothing."""
    tables = Tables(never, synchronous=synchronous)
    for writes in transactions:
        tables.do("an effect", *writes)
    before = tables.state()
    with pytest.raises(PowerCut), tables.transaction():
        cut_short(tables, last)
    tables.die("kill", np.random.default_rng(0))
    assert tables.state() == before


@given(st.lists(st.lists(changes, max_size=5), max_size=6), st.lists(changes, max_size=5))
def test_what_is_synced_stays(transactions, last) -> None:
    """A power cut takes nothing of it, `_synced` never showed more, and nothing is kept to undo it with."""
    tables, told = Tables(), []
    tables.on_durable = told.extend
    for writes in transactions:
        before = tables.state()
        with tables.transaction():
            tables.write("an effect", *writes)
            assert (tables._synced(tables.x), tables._synced(tables.y)) == before
        assert (tables._synced(tables.x), tables._synced(tables.y)) == tables.state()
        assert not tables._committed
    before = tables.state()
    with pytest.raises(PowerCut), tables.transaction():
        cut_short(tables, last)
    tables.die("power", np.random.default_rng(0))
    assert tables.state() == before
    assert len(told) <= len(transactions)


def cut_short(tables: Tables, writes, how: type[BaseException] = PowerCut) -> None:
    """End in the middle."""
    tables.write("the last", *writes)
    raise how


def test_a_transaction_that_fails_is_rolled_back() -> None:
    """And the next one begins as if it had not been."""
    tables, told = Tables(), []
    tables.on_durable = told.append
    tables.do("one", ("x", 1, 1), ("y", 1, 1))
    with pytest.raises(KeyError), tables.transaction():
        cut_short(tables, [("x", 1, 2), ("x", 2, 2), ("y", 1, None)], KeyError)
    assert tables.state() == ({1: 1}, {1: 1})
    tables.do("three", ("x", 3, 3))
    assert told == [["one"], ["three"]]


def test_effects_are_told_by_transaction_and_in_order() -> None:
    """Those that changed nothing are not; a transaction without a change touches no disk."""
    labels, told = [], []
    tables = Tables(labels.append)
    tables.on_durable = told.append
    with tables.transaction():
        tables.write("one", ("x", 1, 1), ("x", 2, 1))
        tables.write("nothing", ("y", 7, None))
        tables.write("two", ("x", 1, None))
    assert (labels, told) == (["write", "write", "commit", "fsync", "synced"], [["one", "two"]])
    tables.do("nothing")
    assert len(labels) == 5
    with tables.transaction():
        tables._set(tables.x, 1, 1)
        tables._done()  # a change for no effect's sake: nothing to tell
    assert (len(labels), len(told)) == (9, 1)


def test_the_dead_do_nothing_until_they_are_buried() -> None:
    """Whoever goes on after its own power cut meets the same one again."""

    def cut(label: str) -> None:
        raise PowerCut(label)

    tables = Tables(cut)
    with pytest.raises(PowerCut) as first:
        tables.do("one", ("x", 1, 1))
    tables.crash_point = never
    with pytest.raises(PowerCut) as second:
        tables.do("two", ("x", 2, 2))
    assert first.value is second.value
    tables.die("power", np.random.default_rng(0))
    tables.do("three", ("x", 3, 3))
    assert tables.state() == ({3: 3}, {})


def test_writes_need_a_transaction_and_room() -> None:
    """One at a time; a full disk refuses the first write of any."""
    tables = Tables()
    with pytest.raises(sqlite3.ProgrammingError):
        tables.write("one", ("x", 1, 1))
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"), tables.transaction():
        tables.do("inner", ("x", 1, 1))
    tables.full = True
    with pytest.raises(NoRoom, match="database or disk is full"):
        tables.do("one", ("x", 1, 1))
    tables.do("nothing")
    tables.full = False
    tables.do("one", ("x", 1, 1))
    assert tables.state() == ({1: 1}, {})
