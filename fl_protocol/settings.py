"""TOML and environment -> a frozen dataclass; unknown keys are refused, with a suggestion.

Both programs read their configuration by this. `ANABRANCH_BROKER__HOST=gw.local` overrides `host` in `[broker]`.
"""

import difflib
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from fl_protocol.errors import ConfigError

T = TypeVar("T")
PREFIX = "ANABRANCH_"
_BARE = re.compile(r"-?[0-9][0-9_.e+-]*|true|false|\[.*\]", re.IGNORECASE)


def load_settings(cls: type[T], path: Path, environ: Mapping[str, str]) -> T:
    """Read `path` as TOML into the dataclass `cls`, environment on top. Raises `ConfigError` naming field and mend."""
    return parse_settings(cls, read_table(path), environ, str(path))


def read_table(path: Path) -> dict[str, Any]:
    """The file's sections as they stand. Raises `ConfigError` where it is not there, or not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}", "name one with --config FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "name a readable TOML file with --config FILE") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", "strings stand in double quotes, tables in [brackets]"
        ) from None


def section_environment(section: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that override one section's keys."""
    return {k: v for k, v in environ.items() if k.startswith(f"{PREFIX}{section.upper()}__")}


def parse_settings(cls: type[T], table: Mapping[str, Any], environ: Mapping[str, str], source: str) -> T:
    """Turn a plain table into `cls`, with `environ` on top. Raises `ConfigError`."""
    merged = _with_environment(cls, dict(table), environ)
    _refuse_unknown(cls, merged, source, "")
    try:
        return msgspec.convert(merged, cls, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        field = where.strip("`").removeprefix("$.") or "the file"
        raise ConfigError(f"{source}: {field}: {message}", f"mend `{field}`{_shown(merged, field)}") from None


def _decode(expected: type, value: object) -> object:
    if expected is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"cannot read a {expected}")


def _shown(table: Mapping[str, Any], dotted: str) -> str:
    value: Any = table
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ""
        value = value[part]
    secret = any(word in dotted for word in ("password", "secret"))
    return "" if secret else f", which is now {value!r:.60}"


def _nested(hint: Any) -> type | None:
    """The dataclass behind a field's type, if it is one (or `one | None`, or `tuple[one, ...]`)."""
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return next((found for arg in get_args(hint) if (found := _nested(arg))), None)
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _refuse_unknown(cls: type, table: Mapping[str, Any], source: str, above: str) -> None:
    hints = get_type_hints(cls, include_extras=True)
    names = [f.name for f in fields(cls)]
    for key, value in table.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean `{above}{near[0]}`?" if near else f"known here: {', '.join(sorted(names))}"
            raise ConfigError(f"{source}: unknown key `{above}{key}`", hint)
        inner = _nested(hints[key])
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            place = f"{above}{key}[{number}]." if isinstance(value, list) else f"{above}{key}."
            if inner and isinstance(item, Mapping):
                _refuse_unknown(inner, item, source, place)


def _with_environment(cls: type, table: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or "__" not in variable:
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
        inner = _nested(hints.get(section))
        if inner is None:
            raise ConfigError(f"environment: {variable} names no section", f"sections: {', '.join(sorted(hints))}")
        table[section] = {**table.get(section, {}), key: _value(get_type_hints(inner).get(key), text)}
    return table


def _value(hint: Any, text: str) -> Any:
    """Text from the environment as TOML would read it, unless the field wants text anyway."""
    wants_text = hint in (str, Path) or (get_origin(hint) in (Union, types.UnionType) and str in get_args(hint))
    if wants_text or not _BARE.fullmatch(text):
        return text
    try:
        return tomllib.loads(f"x = {text.lower() if text.lower() in ('true', 'false') else text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
