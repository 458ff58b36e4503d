"""Whether the link costs by the byte: what the operator says, or what a command of theirs finds out.

The command is run without a shell, at most every half minute and for at most two seconds; exit status 0 says that the
link is metered, any other that it is free. One that does not answer leaves the link metered: that costs accuracy, and
the other mistake money.
"""

import logging
import shlex
import shutil
import time
from collections.abc import Callable

from fl_protocol.errors import ConfigError

log = logging.getLogger("edge_agent")

ASK_EVERY_S = 30.0
ANSWER_S = 2.0
_HINT = 'give "no", "yes", or a command such as "/usr/local/bin/is-metered" whose exit status 0 says metered'


def check_metered(setting: str) -> None:
    """Raises `ConfigError` for `budget.metered` that is neither "no" nor "yes" nor a program of this machine."""
    if setting not in ("no", "yes"):
        _command(setting)


class MeteredLink:
    """Answers from the setting `budget.metered`; see above for a command. Raises what `check_metered` does."""

    def __init__(self, setting: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = [] if setting in ("no", "yes") else _command(setting)
        self._metered, self._clock = setting != "no", clock
        self._ask_at, self._warned = float("-inf"), False

    def __call__(self) -> bool:
        """Whether it is metered now."""
        if self._command and self._clock() >= self._ask_at:
            self._metered = self._ask()
            self._ask_at = self._clock() + ASK_EVERY_S
        return self._metered

    def _ask(self) -> bool:
        import subprocess  # a device without such a command does without its memory

        quiet = subprocess.DEVNULL
        try:
            run = subprocess.run(  # the operator's own words, and no shell
                self._command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=ANSWER_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            if not self._warned:
                log.warning("budget.metered: %s; the link is taken to be metered", error)
            self._warned = True
            return True
        self._warned = False
        return run.returncode == 0


def _command(setting: str) -> list[str]:
    try:
        words = shlex.split(setting)
    except ValueError as error:
        raise ConfigError(f"budget.metered is {setting!r}: {error}", _HINT) from None
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"budget.metered is {setting!r}, and there is no such program", _HINT)
    return words
