"""The setting `budget.metered`: an answer, or the command that finds one out (`metered.py`)."""

import shlex
import shutil

from fl_protocol.errors import ConfigError

_HINT = 'give "no", "yes", or a command such as "/usr/local/bin/is-metered" whose exit status 0 says metered'


def check_metered(setting: str) -> None:
    """Raises `ConfigError` for `budget.metered` that is neither "no" nor "yes" nor a program of this machine."""
    command_of(setting)


def command_of(setting: str) -> list[str]:
    """The command's words, none for "no" and "yes". Raises what `check_metered` does."""
    if setting in ("no", "yes"):
        return []
    try:
        words = shlex.split(setting)
    except ValueError as error:
        raise ConfigError(f"budget.metered is {setting!r}: {error}", _HINT) from None
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"budget.metered is {setting!r}, and there is no such program", _HINT)
    return words
