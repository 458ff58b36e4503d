"""Whether the link costs by the byte: what the operator says, or what a command of theirs finds out.

The command is run without a shell, at most every half minute and for at most two seconds; exit status 0 says that the
link is metered, any other that it is free. Only the first answer is waited for; then the last counts until the next.
One that does not answer leaves the link metered: that costs accuracy, and the other mistake money.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from edge_agent.logs import LEAVES
from edge_agent.metering import command_of

log = logging.getLogger("edge_agent")

ASK_EVERY_S = 30.0
ANSWER_S = 2.0


class MeteredLink:
    """Answers from the setting `budget.metered`; see above for a command. Raises what `check_metered` does."""

    def __init__(self, setting: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = command_of(setting)
        self._metered, self._clock = setting != "no", clock
        self._ask_at, self._warned = float("-inf"), False
        self._asking: threading.Thread | None = None

    def __call__(self) -> bool:
        """Whether it is metered, by the last answer. It returns at once, but for the first time."""
        first = self._asking is None
        if self._command and self._clock() >= self._ask_at and (self._asking is None or not self._asking.is_alive()):
            self._ask_at = self._clock() + ASK_EVERY_S
            self._asking = threading.Thread(target=self._ask, name="metered")
            self._asking.start()  # no daemon: a command in hand is ended before this process is
            if first:
                self.wait()
        return self._metered

    def wait(self) -> None:
        """Wait until the question in hand, if there is one, is answered: little more than two seconds."""
        if self._asking:
            self._asking.join()

    def _ask(self) -> None:
        import subprocess  # a device without such a command does without its memory

        try:
            self._metered = _status(self._command) == 0
            self._warned = False
        except (OSError, subprocess.TimeoutExpired) as error:
            if not self._warned:
                log.warning("budget.metered: %s; the link is taken to be metered", error, extra=LEAVES)
            self._metered = self._warned = True


def _status(command: list[str]) -> int:
    """Its exit status. Raises `OSError`, and `subprocess.TimeoutExpired` once it and its children are killed."""
    import subprocess

    quiet = subprocess.DEVNULL
    with subprocess.Popen(  # the operator's own words, and no shell; a session of its own, to be ended with all in it
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    ) as running:
        try:
            return running.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # it has not been waited for, so the number is still its own
            raise
