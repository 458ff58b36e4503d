"""The commands that a device may be given, and their arguments; both ends read them by this table.

A new command is a row here and a `Rule` in `edge_agent/commanding.py`. Arguments travel as text.
"""

import difflib
from collections.abc import Mapping

from fl_protocol.adjustable import Digest, Number, Reader, Value
from fl_protocol.errors import ConfigError

DEFAULT_LINES = 50
MAX_LINES = 200
MAX_PAUSE_MINUTES = 525_600  # a year
MAX_RELEASE_BYTES = 256 << 20  # of the agent, that a device fetches
UPDATE = "update-agent"
DEVICE_COMMANDS: Mapping[str, Mapping[str, Reader]] = {
    "train-now": {},
    "pause": {"minutes": Number(1, MAX_PAUSE_MINUTES)},
    "resume": {},
    "collect-logs": {"lines": Number(1, MAX_LINES)},
    "forget-data": {},
    "report": {},
    UPDATE: {"sha256": Digest(), "size": Number(1, MAX_RELEASE_BYTES)},
}
REQUIRED = frozenset({UPDATE})  # all of their arguments


def read_arguments(name: str, arguments: Mapping[str, str]) -> dict[str, Value]:
    """What the texts mean; but of `REQUIRED`, all may be left out. Raises `ConfigError` naming command and argument."""
    readers = DEVICE_COMMANDS.get(name)
    if readers is None:
        near = difflib.get_close_matches(name, DEVICE_COMMANDS, n=1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(DEVICE_COMMANDS)}"
        raise ConfigError(f"unknown command {name!r:.80}", known)
    values: dict[str, Value] = {}
    for argument, text in arguments.items():
        if argument not in readers:
            raise ConfigError(f"{name} has no argument {argument!r:.80}", f"it has: {', '.join(readers) or 'none'}")
        value = readers[argument].read(text)
        if value is None:
            raise ConfigError(f"{argument} of {name} is {text!r:.80}", f"it is {readers[argument]}")
        values[argument] = value
    if name in REQUIRED and (lacking := readers.keys() - values.keys()):
        raise ConfigError(f"{name} has no {' and no '.join(sorted(lacking))}", "say all of its arguments")
    return values
