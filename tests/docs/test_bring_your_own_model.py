"""docs/bring-your-own-model.md does what it says: a new model reaches eight agents, and its tables are the code's."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import losses, metrics, optimizers
from models.spec import ModelSpec
from tests.docs.pages import DOCS, ROOT, blocks, codes, tables
from tests.support.mosquitto import accepts
from tests.support.reader import Reader
from tests.support.waiting import wait_until

PAGE = DOCS / "bring-your-own-model.md"
HOME = "/home/you/anabranch"  # on the page


def rows(head: str) -> list[tuple[str, ...]]:
    """All rows of the tables whose first column is `head`."""
    return [row for table in tables(PAGE) if table.heads[0] == head for row in table.rows]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Someone in a checkout of their own: a new model must not appear in ours."""
    checkout = tmp_path / "anabranch"
    shutil.copytree(ROOT / "models", checkout / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("fl_protocol", "edge_agent", "broker_aggregator", "anabranch"):
        (checkout / package).symlink_to(ROOT / package)
    someone = Reader(checkout)
    someone.environment |= {"COLUMNS": "240", "OMP_NUM_THREADS": "1"}
    yield someone
    someone.leave()


@pytest.mark.timeout(400)  # it takes half a minute, but on a crowded machine several
def test_the_page_leads_from_a_torch_module_to_eight_agents_and_an_int8_model(reader: Reader) -> None:
    """Every command of the page succeeds, every line that it shows is printed, and the exported model is good."""
    told = ""
    for block in blocks(PAGE):
        if "broker-aggregator status" in block.body:
            wait_until(lambda: _task(reader)["state"] == "finished", seconds=120, what="the task is finished")
        if block.language or block.file:
            told = reader.follow(block, seconds=200) if block.runs or block.file else ""
            if block.body.startswith("mosquitto "):
                wait_until(lambda: accepts(int(reader.port)), what="mosquitto accepts connections")
            if "models build" in block.body and block.runs:
                _check_gates(told)
            if "predict.py" in block.body and block.runs:
                assert float(told.split(":")[1]) > 0.9, told
        else:
            printed = {_shape(line) for line in told.replace(str(reader.folder), HOME).splitlines()}
            for line in block.body.replace("1884", reader.port).splitlines():
                assert _shape(line) in printed, f"{line!r} is on the page, and was not printed:\n{told}"
    task = _task(reader)
    assert task["version"] == 40
    assert len(json.loads(reader.run("broker-aggregator devices --json --config runs/events/gateway.toml"))) == 8


def _task(reader: Reader) -> dict[str, object]:
    (task,) = json.loads(reader.run("broker-aggregator status --json --config runs/events/gateway.toml"))
    return dict(task)


def _shape(line: str) -> str:
    """A line without its numbers, hashes and spaces, which differ from run to run."""
    return " ".join(re.sub(r"\d[\d,.]*", "0", re.sub(r"[0-9a-f]{64}", "HASH", line)).split())


def _check_gates(printed: str) -> None:
    """Every gate that was measured is explained, and every one that is explained was measured."""
    explained = [codes(row[0])[0] for row in rows("gate")]
    measured = [line.strip("│ ").split("  ")[0] for line in printed.splitlines() if line.endswith("│ passed │")]
    assert measured
    for name in measured:
        assert any(name.startswith(start) for start in explained), f"{name} is not on the page"
    for start in explained:
        assert any(name.startswith(start) for name in measured), f"{start} is on the page, and was not measured"


def test_an_author_writes_less_than_forty_lines() -> None:
    """Module and spec together, empty lines left out."""
    written = [block for block in blocks(PAGE) if block.file.startswith("models/event_log/")]
    assert len(written) == 2
    assert len([line for block in written for line in block.body.splitlines() if line.strip()]) < 40


def test_the_fields_are_those_of_the_spec() -> None:
    """Each with its default."""
    said = {codes(name)[0]: default.strip("`") for name, default, _ in rows("field")}
    shown = {"CLASS_NUMBER": "y", "cross_entropy": "loss", "ACCURACY": "metric"}
    for field in dataclasses.fields(ModelSpec):
        default = said.pop(field.name)
        if field.default is dataclasses.MISSING:
            assert default == "required", field.name
        elif field.name in shown.values():
            assert shown[default] == field.name
        else:
            assert default == repr(field.default), field.name
    assert said == {}


def test_losses_metrics_and_optimizers_are_those_of_the_code() -> None:
    """All that there are, and every option of an optimizer."""
    listed = {codes(name)[0]: set(codes(text)) for name, text in rows("from")}
    helpers = {"difference", "per_example", "single"}
    assert listed["models.losses"] == {n for n in _functions(losses) if n not in helpers}
    made = {name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)}
    assert listed["models.metrics"] == made | {"balanced_accuracy"}
    kinds = optimizers.Optimizer.__subclasses__()
    options = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert listed["models.optimizers"] == {kind.__name__ for kind in kinds} | options


def _functions(module: object) -> list[str]:
    name = module.__name__  # type: ignore[attr-defined]
    return [n for n, v in vars(module).items() if getattr(v, "__module__", "") == name and n[0] != "_"]
