"""Tests wait for what they expect, with a deadline; they never sleep for a time that ought to be enough."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_S = 0.01


def wait_until(condition: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """The first truthy value of `condition()`. Fails the test when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what or 'what was waited for'}: not within {seconds} s"
        time.sleep(PAUSE_S)
    return value
