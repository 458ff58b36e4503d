"""What the disk keeps of the operator's words: a command and how far it is, a pause, and the wanted configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fl_protocol.codec import from_plain, to_plain
from fl_protocol.errors import ProtocolError
from fl_protocol.messages import CommandProgress


@dataclass(frozen=True)
class KeptCommand:
    """A command that was begun, with its newest progress; by it nothing is carried out twice that must not be."""

    cid: str
    name: str
    counter: int
    arguments: Mapping[str, str]
    progress: CommandProgress
    note: str = ""  # what its next step needs to know after a restart


@dataclass(frozen=True)
class Paused:
    """The operator's pause: `left_s` from its beginning, None until `resume`; `until_s` by the local clock, if any."""

    left_s: float | None = None
    until_s: float | None = None


@dataclass(frozen=True)
class Configured:
    """The wanted configuration that is in force; revision 0: only the device's own file is."""

    revision: int = 0
    configuration: Mapping[str, str] = field(default_factory=dict)


def write_command(command: KeptCommand) -> str:
    """As a row keeps it; without a note, as software reads it that knows of none."""
    plain = {**vars(command), "progress": to_plain(command.progress)}
    if not command.note:
        del plain["note"]
    return msgspec.json.encode(plain, order="sorted").decode()


def read_command(text: str) -> KeptCommand:
    """The inverse of `write_command`. Raises `ValueError` for what that did not write."""
    plain = msgspec.json.decode(text)
    try:
        return KeptCommand(**{**plain, "progress": from_plain(CommandProgress, plain["progress"])})
    except (ProtocolError, TypeError, KeyError) as error:
        raise ValueError(f"a command that is none: {error}") from None
