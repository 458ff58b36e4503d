"""What the doctor found: what works, what does not, what that means for a fleet, and what to do."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["works", "warning", "fails", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried. `warning` is something to know and decide, `fails` what a fleet needs."""

    check: str
    verdict: Verdict
    what: str
    meaning: str = ""
    mend: str = ""
