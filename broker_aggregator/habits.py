"""What the gateway has learnt of one device in one task: its pace, its reliability, its share. In memory only."""

import math
from dataclasses import dataclass

from fl_protocol.messages import Update

RATE = 0.3  # of the moving averages
DECLINED = 0.1  # a decline says little of whether the next invitation is kept
MAX_EXAMPLES = 1e6  # that are believed; Oort's |B|
MAX_LOSS = 100.0
MAX_MISSES = 4  # doublings of a lease


@dataclass
class Habits:
    """All -1: never. Versions are base versions, `asked` is an invitation's number."""

    seconds: float | None = None  # from invitation to update, moving average; none: not known
    availability: float = 1.0  # of its invitations, the share that brought an update, moving average
    usefulness: float | None = None  # |B| sqrt(mean loss^2), see `useful`
    accepted: int = 0  # updates
    taken: int = -1  # the newest version that it was counted from, or will be
    tried: int = -1  # the newest version that it trained from, as far as it told
    asked: int = -1
    misses: int = 0  # leases in a row that ended while the device was there: they were too short
    declines: int = 0  # in a row
    rests_until: float = -math.inf  # not asked before, unless there is nobody else
    asked_at: float = -math.inf
    came_at: float = -math.inf  # its last update
    pending: str = ""  # the slot of its last invitation, until an update comes for it

    def invited(self, slot: str, number: int, now: float) -> None:
        """It was given a slot."""
        self.pending, self.asked, self.asked_at = slot, number, now

    def died(self, *, there: bool) -> None:
        """Its slot came to an end without an update; `there`: it was connected all the while, and is only slow."""
        self.availability -= RATE * self.availability
        self.misses = min(self.misses + 1, MAX_MISSES) if there else 0

    def declined(self, rest_s: float, longest_s: float, now: float) -> None:
        """It said no: not asked again for a while, each time twice as long."""
        self.availability -= DECLINED * self.availability
        self.rests_until = now + min(longest_s, rest_s * 2.0 ** min(self.declines, 20))
        self.declines += 1
        self.pending = ""

    def came(self, update: Update, began_at: float | None, now: float) -> None:
        """An update was accepted; `began_at` is when the device could begin with it, None where nobody knows."""
        if self.pending and update.slot == self.pending:
            began_at = self.asked_at
        if self.pending and began_at == self.asked_at:
            self.availability += RATE * (1 - self.availability)
            self.pending = ""
        if began_at is not None and now > (began := max(began_at, self.came_at)):
            known = self.seconds
            self.seconds = now - began if known is None else known + RATE * (now - began - known)
        self.came_at = now
        self.accepted += 1
        self.misses = self.declines = 0
        self.taken = max(self.taken, update.base_version)
        self.tried = max(self.tried, update.base_version)
        self.usefulness = useful(update)


def useful(update: Update) -> float | None:
    """Oort's statistical utility |B| sqrt(mean loss^2) (Lai et al., OSDI 2021), the mean loss standing for the root.

    A device's own word, believed within bounds; None where it gave none.
    """
    loss = update.metrics.get("train_loss", update.metrics.get("loss", math.nan))
    if not math.isfinite(loss) or loss < 0:
        return None
    return min(float(update.num_examples), MAX_EXAMPLES) * min(loss, MAX_LOSS)
