"""Configuration is read strictly: what is not understood is refused, with what to do about it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fl_protocol.errors import ConfigError
from fl_protocol.settings import load_settings, parse_settings


@dataclass(frozen=True)
class Broker:
    host: str = "localhost"
    port: int = 1883
    password: str | None = None
    ca: Path | None = None
    verify: bool = True


@dataclass(frozen=True)
class Config:
    name: str
    broker: Broker = field(default_factory=Broker)


def test_a_file_and_the_environment_make_a_config(tmp_path):
    """The environment wins, in the field's own type."""
    path = tmp_path / "c.toml"
    path.write_text('name = "x"\n[broker]\nport = 1\nca = "ca.pem"\n')
    environ = {"ANABRANCH_BROKER__PORT": "7", "ANABRANCH_BROKER__HOST": "123", "ANABRANCH_BROKER__VERIFY": "False"}
    config = load_settings(Config, path, {**environ, "PATH": "/bin", "ANABRANCH_DATASETS": "/d"})
    assert config == Config("x", Broker(host="123", port=7, ca=Path("ca.pem"), verify=False))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "x", "brokr": {}}, "unknown key `brokr`.*did you mean `broker`"),
        ({"name": "x", "broker": {"prot": 1}}, r"unknown key `broker\.prot`.*did you mean `broker\.port`"),
        ({"name": "x", "broker": {"zzz": 1}}, r"unknown key `broker\.zzz`.*known here: ca, host"),
        ({"name": "x", "broker": {"port": "1883"}}, r"broker\.port.*'1883'"),
        ({"name": 3}, "name: Expected `str`.*now 3"),
        ({}, "missing required field `name`"),
    ],
)
def test_mistakes_are_named_with_their_mend(table, said):
    """Field, value and what to do next."""
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        parse_settings(Config, table, {}, "c.toml")


def test_secrets_are_not_repeated_in_errors():
    """A password of the wrong type does not end up in a log."""
    with pytest.raises(ConfigError) as refused:
        parse_settings(Config, {"name": "x", "broker": {"password": 12345}}, {}, "c.toml")
    assert "12345" not in str(refused.value)


def test_an_environment_variable_for_no_section_is_refused():
    """A typing error in the environment is one as well."""
    with pytest.raises(ConfigError, match="ANABRANCH_BROKR__PORT"):
        parse_settings(Config, {"name": "x"}, {"ANABRANCH_BROKR__PORT": "1"}, "c.toml")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "there is no"), ("name = ", "not TOML"), (b"\xff", "cannot read")]
)
def test_files_that_are_none(tmp_path, content, said):
    """Missing, not TOML, not text."""
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=said):
        load_settings(Config, path, {})
