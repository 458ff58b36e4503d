"""What travels between a transport in memory and its broker, and when it arrives.

`DIRECT` has no length: whatever is sent arrives before the call returns. The simulator's wires take time, and end; each
end then learns of it when it can.
"""

from collections.abc import Callable
from typing import Protocol

Arrive = Callable[[], None]


class Wire(Protocol):
    """The way between a transport and its broker; what is sent before another thing arrives before it."""

    def up(self, size: int, arrive: Arrive, /) -> None:
        """Carry a packet of `size` bytes to the broker; `arrive` is called there."""

    def down(self, size: int, arrive: Arrive, /) -> None:
        """Carry a packet to the transport."""

    def full(self) -> bool:
        """Whether the broker should hold back what it has: TCP takes no more. `drained` then says when it does."""

    def on_drained(self, drained: Arrive, /) -> None:
        """Call `drained` when the wire takes more again."""


class _Direct:
    def up(self, _size: int, arrive: Arrive, /) -> None:
        arrive()

    def down(self, _size: int, arrive: Arrive, /) -> None:
        arrive()

    def full(self) -> bool:
        return False

    def on_drained(self, drained: Arrive, /) -> None:
        """It is never full."""


DIRECT: Wire = _Direct()
