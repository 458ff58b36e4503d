"""Settings of a codec, or of a rule: texts in a signed plan, read one by one; what is left over is refused by name."""

import re
from collections.abc import Mapping, Sequence

from fl_protocol.errors import Code, ProtocolError

_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,6}")


class Parameters:
    """Settings still to be read. Everything here raises `ProtocolError(E_SCHEMA)` that names setting and value."""

    def __init__(self, settings: Mapping[str, str], of: str = "codec") -> None:
        self._left, self._of = dict(settings), of
        self.name = self._left.pop("name", "")

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A decimal number from `low` to `high`."""
        text = self._left.pop(key, str(default))
        if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
            raise ProtocolError(Code.SCHEMA, f"{key} is a number from {low} to {high}, not {text!r:.80}")
        return float(text)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`, below ten million, as Python writes it."""
        text = self._left.pop(key, str(default))
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise ProtocolError(Code.SCHEMA, f"{key} is a whole number from {low} to {high}, not {text!r:.80}")
        return int(text)

    def choice(self, key: str, among: Sequence[str]) -> str:
        """One of some words; the first is the default."""
        text = self._left.pop(key, among[0])
        if text not in among:
            raise ProtocolError(Code.SCHEMA, f"{key} is one of {', '.join(among)}, not {text!r:.80}")
        return text

    def text(self, key: str, default: str) -> str:
        """Any text."""
        return self._left.pop(key, default)

    def has(self, key: str) -> bool:
        """Whether the settings mention it."""
        return key in self._left

    def finish(self) -> None:
        """Every setting has been read."""
        if self._left:
            raise ProtocolError(Code.SCHEMA, f"the {self._of} {self.name} has no parameter {min(self._left)!r:.80}")
