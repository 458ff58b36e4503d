"""docs/operate.md lists every command with every option, and none that is not there."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import typer.main

import anabranch.__main__
import broker_aggregator.__main__
import deploy.__main__
import edge_agent.__main__
import fl_protocol.heartbeat
import models.__main__
from tests.docs.pages import DOCS, codes, tables

PAGE = DOCS / "operate.md"
UNIVERSAL = {"--help", "-h"}


def of_typer(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
    """Every command below `command`, and its options; one without any of its own is left out."""
    options = {word for p in command.params if p.param_type_name == "option" for word in (*p.opts, *p.secondary_opts)}
    below = getattr(command, "commands", {})
    if options - UNIVERSAL or not below:
        yield name, options - UNIVERSAL
    for word, sub in below.items():
        yield from of_typer(sub, f"{name} {word}")


def of_argparse(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, set[str]]]:
    """The same for argparse."""
    below: Mapping[str, argparse.ArgumentParser] = {}
    options: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
        options |= set(action.option_strings)
    yield name, options - UNIVERSAL
    for word, sub in below.items():
        yield from of_argparse(sub, f"{name} {word}")


def real() -> dict[str, set[str]]:
    apps = {
        "broker-aggregator": broker_aggregator.__main__.app,
        "anabranch": anabranch.__main__.app,
        "python -m deploy": deploy.__main__.app,
        "python -m models": models.__main__.app,
    }
    found = {}
    for name, app in apps.items():
        found |= dict(of_typer(typer.main.get_command(app), name))
    found |= dict(of_argparse(fl_protocol.heartbeat.make_parser(), "anabranch-health"))
    return found | dict(of_argparse(edge_agent.__main__._parser(), "edge-agent"))


def documented() -> dict[str, set[str]]:
    """Command -> options, by the tables; words in capitals are arguments."""
    found = {}
    for table in tables(PAGE):
        if table.heads[:2] == ("command", "options"):
            for command, options, _ in table.rows:
                (text,) = codes(command)
                found[" ".join(word for word in text.split() if not word.isupper())] = set(codes(options))
    return found


def test_every_command_is_documented_and_no_other() -> None:
    """Someone who reads the page knows all commands."""
    assert sorted(real()) == sorted(documented())


@pytest.mark.parametrize("command", sorted(real()))
def test_every_option_is_documented_and_no_other(command: str) -> None:
    """A new option appears in its command's row."""
    assert documented().get(command) == real()[command]
