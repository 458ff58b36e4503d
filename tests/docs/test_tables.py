"""Tables in the docs say what the code says: topics, messages, codes, plan, configuration."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import edge_agent.config
from broker_aggregator.config import GatewayConfig, TaskConfig, load_config, load_task
from broker_aggregator.operations import GATEWAY_FIELDS, NEW_TASK, make_plan
from edge_agent.config import AgentConfig
from fl_protocol import messages
from fl_protocol.bundle import Bundle
from fl_protocol.codec import BINARY, MESSAGE_OF
from fl_protocol.errors import Code
from fl_protocol.settings import _nested
from fl_protocol.topics import Kind
from tests.docs.pages import DOCS, ROOT, Table, blocks, codes, tables

PROTOCOL, QUICKSTART = DOCS / "protocol.md", DOCS / "quickstart.md"
TWO = {  # topics on which both sides speak
    Kind.COMMAND: [messages.Ask, messages.Answer],
    Kind.DEVICE_COMMAND: [messages.DeviceCommand, messages.CommandProgress],
}
EVERYWHERE = {"v", "ts", "extra", "counter"}  # said once, above the table of messages
BUNDLE = ROOT / "anabranch" / "data" / "fan_vibration.bundle"


def table(page: Path, head: str, heading: str = "", before: str = "") -> Table:
    """The one table whose first column is `head`, below `heading`, with `before` in the text above it."""
    found = [t for t in tables(page) if t.heads[0] == head and t.heading.endswith(heading) and before in t.before]
    assert len(found) == 1, f"{page.name}: {len(found)} tables of {head!r} below {heading!r} after {before!r}"
    return found[0]


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """A field's default; `MISSING` where it must be given."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def shown(default: Any) -> str:
    """A default as the tables write it."""
    if default is dataclasses.MISSING:
        return "required"
    if default is None:
        return "none"
    if dataclasses.is_dataclass(default):
        return "see below"
    return f"`{json.dumps(str(default) if isinstance(default, Path) else default)}`"


def fields_of(cls: type) -> dict[str, str]:
    """Names and defaults, as the tables write them."""
    return {f.name: shown(default_of(f)) for f in dataclasses.fields(cls) if f.name not in EVERYWHERE}


def rows_of(found: Table) -> dict[str, str]:
    """Names and defaults of a table whose first columns are these."""
    return {codes(row[0])[0]: row[1] for row in found.rows}


def test_the_topics_are_those_of_the_code() -> None:
    """Every topic, with the message that it carries, and its format. Retained and QoS: see test_quickstart.py."""
    rows = table(PROTOCOL, "topic").rows
    assert [codes(row[0])[0] for row in rows] == [kind.value for kind in Kind]
    for kind, row in zip(Kind, rows, strict=True):
        said = [getattr(messages, name) for name in codes(row[4])]
        assert said == (TWO.get(kind) or [MESSAGE_OF[kind]]), kind
        assert row[5] == ("msgpack" if said[0] in BINARY else "JSON"), kind
        assert ("signed" in row[4]) == any(issubclass(cls, messages.Signed) for cls in said), kind


def test_the_messages_are_those_of_the_code() -> None:
    """Every message with every field, and the default of those that may be left out."""
    classes = [cls for cls in vars(messages).values() if isinstance(cls, type) and issubclass(cls, messages.Message)]
    expected = {}
    for cls in set(classes) - {messages.Message, messages.Signed}:
        expected[cls.__name__] = [as_said(f) for f in dataclasses.fields(cls) if f.name not in EVERYWHERE]
    rows = table(PROTOCOL, "message", "Messages").rows
    assert {codes(name)[0]: codes(said) for name, said in rows} == expected


def as_said(field: "dataclasses.Field[Any]") -> str:
    """`name`, or `name = default`."""
    default = default_of(field)
    if default is dataclasses.MISSING:
        return field.name
    if isinstance(default, bytes):
        default = default.decode()
    return f"{field.name} = {type(default).__name__ if dataclasses.is_dataclass(default) else json.dumps(default)}"


def test_the_codes_are_those_of_the_code() -> None:
    """Every code, in its order."""
    assert [codes(cell)[0] for cell in table(PROTOCOL, "code").column("code")] == list(Code)


def test_the_signed_messages_are_those_of_the_code() -> None:
    """What the fleet's key signs is exactly what is `Signed`; the device signs what it asks to be judged by."""
    fleet, device = table(PROTOCOL, "signed by").column("messages")
    signed = {cls.__name__ for cls in messages.Signed.__subclasses__()}
    assert (set(codes(fleet)), codes(device)) == (signed, ["Update", "Offer", "Renew"])


def test_facts_name_files_that_exist() -> None:
    """Where a broker's fact is honoured, there is code."""
    for cell in table(PROTOCOL, "fact").column("honoured in"):
        for name in (word for word in codes(cell) if "/" in word or "." in word):
            assert (ROOT / name).is_file(), name


def test_the_plan_is_that_of_the_code() -> None:
    """Every field that an operator may set, with its default; what the gateway fills in is not in the table."""
    plan = table(QUICKSTART, "field", "The task file", before="`[plan]`")
    fields = fields_of(messages.Plan) | {name: f"`{json.dumps(value)}`" for name, value in NEW_TASK.items()}
    assert rows_of(plan) == {k: v for k, v in fields.items() if k not in GATEWAY_FIELDS}
    assert rows_of(table(QUICKSTART, "field", "The task file", before="`stop")) == fields_of(messages.Stop)
    assert rows_of(table(QUICKSTART, "key", "The task file")) == fields_of(TaskConfig)


def test_every_field_of_the_plan_may_be_set() -> None:
    """A task file that writes each default of the table down gives the plan that says nothing."""
    bundle = Bundle.read(BUNDLE.read_bytes())
    said = rows_of(table(QUICKSTART, "field", "The task file", before="`[plan]`"))
    fields = {name: json.loads(text.strip("`")) for name, text in said.items() if text.startswith("`")}
    plan = make_plan(fields, bundle, 1, "fans", 17)
    assert plan == make_plan({}, bundle, 1, "fans", 17)


SECTIONS = [
    *(("The gateway", GatewayConfig, name) for name in ("gateway", "enrollment")),
    *(("The agent", AgentConfig, f.name) for f in dataclasses.fields(AgentConfig) if f.name != "broker"),
]


@pytest.mark.parametrize(("heading", "cls", "section"), SECTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_the_configuration_is_that_of_the_code(heading: str, cls: type, section: str) -> None:
    """Every key of every section, with its default."""
    inner = _nested(get_type_hints(cls, include_extras=True)[section])
    assert inner is not None
    assert rows_of(table(QUICKSTART, "key", heading, before=f"`[{section}]`")) == fields_of(inner)


def test_the_broker_section_is_that_of_the_code() -> None:
    """One table for both programs; rows that say `agents only` are the agent's alone."""
    found = table(QUICKSTART, "key", "The broker")
    agents_only = {codes(row[0])[0] for row in found.rows if "agents only" in row[2]}
    assert rows_of(found) == fields_of(edge_agent.config.BrokerConfig)
    gateways = fields_of(get_type_hints(GatewayConfig)["broker"])
    assert {k: v for k, v in rows_of(found).items() if k not in agents_only} == gateways


def test_every_section_of_the_gateway_is_documented() -> None:
    """A new one must be written about."""
    assert [f.name for f in dataclasses.fields(GatewayConfig)] == ["gateway", "broker", "devices", "enrollment"]
    text = QUICKSTART.read_text()
    assert all(f"`[{f.name}]`" in text for f in dataclasses.fields(GatewayConfig))


def test_the_files_on_the_page_are_read_by_the_programs(tmp_path: Path) -> None:
    """Each TOML block of the quickstart is a valid configuration, once the fleet's key is put in."""
    readers = {
        "gateway.toml": lambda path: load_config(path, {}),
        "fan-40.toml": lambda path: edge_agent.config.load_config(path, {}),
        "fans.toml": load_task,
    }
    read = set()
    for block in (block for block in blocks(QUICKSTART) if block.language == "toml"):
        tomllib.loads(block.body)
        path = tmp_path / block.file
        path.write_text(block.body.replace("FLEET_KEY", "0" * 64))
        readers[block.file](path)
        read.add(block.file)
    assert read == set(readers)
