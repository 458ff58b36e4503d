"""Whose fault it is. Nothing else in this project is raised across a module's border on purpose.

`ProtocolError` is the peer's fault: what it sent is counted, answered with a code, and forgotten.
`ConfigError` is the operator's: it names the field, the value, and what to do next.
"""

from enum import StrEnum


class Code(StrEnum):
    """Stable codes of a refusal. Never renamed, never reused; new ones may be added."""

    VERSION = "E_VERSION"
    SHA = "E_SHA"
    SIZE = "E_SIZE"
    STALE = "E_STALE"
    NAN = "E_NAN"
    NORM = "E_NORM"
    QUOTA = "E_QUOTA"
    AUTH = "E_AUTH"
    SIG = "E_SIG"
    SCHEMA = "E_SCHEMA"
    FINGERPRINT = "E_FINGERPRINT"
    DISK = "E_DISK"
    OLD = "E_OLD"
    DOWNGRADE = "E_DOWNGRADE"
    TASK = "E_TASK"
    CLAIM = "E_CLAIM"
    COMMAND = "E_COMMAND"
    DEADLINE = "E_DEADLINE"


class ProtocolError(Exception):
    """The peer said something that the protocol does not allow."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ConfigError(Exception):
    """The operator asked for something that cannot be; `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  hint: {hint}" if hint else message)
        self.message = message
        self.hint = hint
