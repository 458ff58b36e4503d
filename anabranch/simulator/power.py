"""How a simulated process dies, and where: the words that disk and network models share."""

from collections.abc import Callable
from typing import Literal

Death = Literal["kill", "power"]
"""``kill``: kill -9, the page cache lives on. ``power``: what was not synced is lost or torn."""

CrashPoint = Callable[[str], None]
"""Called before every effect on disk or network with a label of it.

Labels read like ``fsync objects/ab12``, ``commit`` or ``publish fl/1/...``. It raises `PowerCut`
where the schedule lets the process die, and otherwise returns.
"""


class PowerCut(BaseException):
    """The process is gone, in the middle of what it did.

    A `BaseException`, so that no ``except Exception`` of production code outlives it. Code that
    catches `BaseException` to clean up finds the same death at its next effect.
    """


def never(label: str) -> None:
    """Let the process live: the crash point of a run without faults."""
