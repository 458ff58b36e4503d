"""docs/simulate.md says what an experiment's file may say."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from anabranch.simulator import experiment
from anabranch.simulator.experiment import load_experiment
from anabranch.simulator.faults import ALL_DEEDS
from tests.docs.pages import DOCS, ROOT, codes, tables

PAGE = DOCS / "simulate.md"
LISTS = {"fleet.tiers": experiment.TierSection, "events": experiment.EventSection, "attacks": experiment.AttackSection}


def rows(head: str) -> list[tuple[str, ...]]:
    (found,) = [table for table in tables(PAGE) if table.heads[0] == head]
    return list(found.rows)


def as_said(name: str, value: Any) -> str:
    return f"{name} = {json.dumps(value)}"


def of_class(cls: type) -> list[str]:
    said = []
    for field in dataclasses.fields(cls):
        if cls is experiment.FleetSection and field.name == "tiers":
            continue
        said.append(field.name if field.default is dataclasses.MISSING else as_said(field.name, field.default))
    return said


def test_the_sections_are_those_of_the_code() -> None:
    """Every section with every key and its default, and no other."""
    whole = experiment.Experiment(name="x")
    sections = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    inner = {name: value for name, value in sections.items() if dataclasses.is_dataclass(value)}
    expected = {
        name: [as_said(k, v) for k, v in vars(value).items() if k != "tiers"] for name, value in inner.items()
    } | {name: of_class(cls) for name, cls in LISTS.items()}
    top = [name for name in sections if name not in inner and name not in LISTS]
    expected["top"] = ["name", *(as_said(name, sections[name]) for name in top[1:])]
    assert {(codes(name) or [name])[0]: codes(keys) for name, keys, _ in rows("section")} == expected


def test_the_deeds_are_those_of_the_code() -> None:
    """Every deed that a storm or an event may be."""
    assert sorted(deed for name, _ in rows("deed") for deed in codes(name)) == sorted(ALL_DEEDS)


LIBRARY = sorted((ROOT / "benchmarks" / "experiments").rglob("*.toml"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_experiment_of_the_library_is_sound_and_named_as_its_file(path: Path) -> None:
    """It loads, says what it is, and its results can be told from others'."""
    loaded = load_experiment(path)
    assert loaded.name == path.stem
    assert loaded.description
