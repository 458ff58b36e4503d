"""The list of checks an update passes before it is counted. `Rejected` is not an error: it is an answer.

Each check reads the update and where it stands, and returns or raises. Cheap ones come first; the order is what a
device may rely on when it reads a code.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from broker_aggregator.events import Release
from fl_protocol.compression import decode_statistics, make_compressor
from fl_protocol.errors import Code, ProtocolError
from fl_protocol.messages import Offer, Plan, Update, Verdict
from fl_protocol.tensors import ModelLayout

VALUE_BYTES, HEADER_BYTES = 8, 64 << 10  # an update takes half of this at most; float32 is the largest codec
MAX_WAITING = 2  # accepted updates of one device, see `waits_its_turn`
MAX_RETRY_S = 300
MIN_NORMS = 10  # before so many accepted updates the model's own norm stands in for the ordinary one


class Rejected(Exception):  # noqa: N818  # an answer, not an error
    """An update that will not be counted, or not now: verdict, code, and a sentence for the device's operator."""

    def __init__(self, verdict: Verdict, code: Code | None, why: str, retry_in_s: int = 0) -> None:
        super().__init__(why)
        self.verdict, self.code, self.why, self.retry_in_s = verdict, code, why, retry_in_s


@dataclass(frozen=True)
class Standing:
    """Where an update meets the task: its plan, the current version, and the norms of what was accepted lately.

    And its device: the base version that it was last accepted from (-1: none), how many of its updates wait, the
    oldest version that its tier takes, and how many of its updates may wait.
    """

    plan: Plan
    layout: ModelLayout
    release: Release
    recent_norms: Sequence[float] = ()
    taken: int = -1
    waiting: int = 0
    since: int = 0
    room: int = MAX_WAITING


Header = Update | Offer  # both say task, base version and fingerprint
Check = Callable[[Header, Standing], None]


def task_runs(update: Header, at: Standing) -> None:  # noqa: ARG001  # all checks have one shape
    """A paused task wants the update later; one that has ended, never."""
    if at.plan.state in ("paused", "created"):
        raise Rejected("deferred", None, f"task {at.plan.task} is {at.plan.state}", retry_in_s=60)
    if at.plan.state != "running":
        raise Rejected("stale", Code.STALE, f"task {at.plan.task} is {at.plan.state}")


def fingerprint_matches(update: Header, at: Standing) -> None:
    """The delta must mean the tensors that we would add it to."""
    if update.fingerprint != at.layout.fingerprint:
        why = (
            f"the update is for model {update.fingerprint:.12}, task {at.plan.task} trains {at.layout.fingerprint:.12}"
        )
        raise Rejected("rejected", Code.FINGERPRINT, why)


def base_is_plausible(update: Header, at: Standing) -> None:
    """Nobody trains from a version that was never released."""
    if update.base_version > at.release.version:
        why = f"base version {update.base_version} was never released; the current one is {at.release.version}"
        raise Rejected("rejected", Code.VERSION, why)


def fresh_enough(update: Header, at: Standing) -> None:
    """Synchronous mode takes the current version only; asynchronous, and tiers, up to `max_staleness` versions ago.

    A tier is synchronous within: what its devices trained from a version before its last release is late.

    What was trained before the model's present life (the task was deleted and made again, or got another model) is
    of no use at any age.
    """
    if update.base_version < at.plan.origin:
        raise Rejected("stale", Code.STALE, f"version {update.base_version} belongs to an earlier life of the task")
    staleness = at.release.version - update.base_version
    limit = 0 if at.plan.in_rounds else at.plan.max_staleness
    if staleness > limit:
        raise Rejected("stale", Code.STALE, f"{staleness} versions old, at most {limit} is of use")
    if update.base_version < at.since:
        raise Rejected("stale", Code.STALE, f"its tier went on to version {at.since}, {staleness} versions old")


def once_a_version(update: Header, at: Standing) -> None:
    """A device trains each version at most once, and never an older one after a newer; whoever says it did, lies.

    Or it was flashed anew, and forgot. A second update from one version would count its examples twice.
    """
    if update.base_version <= at.taken:
        why = f"this device was counted from version {at.taken} already; each is trained once"
        raise Rejected("stale", Code.STALE, why)


def waits_its_turn(_: Header, at: Standing) -> None:
    """One update for this buffer, one for the next: no device can fill the gateway's memory."""
    if at.waiting >= at.room:
        why = f"{at.waiting} updates of this device wait to be counted"
        raise Rejected("deferred", Code.QUOTA, why, min(at.plan.deadline_s, MAX_RETRY_S))


def size_is_plausible(offer: Offer, at: Standing) -> None:
    """No sealed update of this layout is larger: what is cannot be one, and takes no room from others'."""
    limit = VALUE_BYTES * at.layout.size + HEADER_BYTES
    if offer.size > limit:
        raise Rejected("rejected", Code.SIZE, f"an update of {offer.size} bytes; task {at.plan.task} takes {limit}")


def digest_matches(update: Update) -> None:
    """What arrived is what was sent."""
    if update.sha256 and hashlib.sha256(update.payload + update.statistics).hexdigest() != update.sha256:
        raise Rejected("rejected", Code.SHA, "payload and statistics do not have the SHA-256 that the header names")


@dataclass(frozen=True)
class Measure:
    """An admitted delta's norm, and the factor in 0..1 by which it is counted: more than the limit is scaled to it."""

    norm: float
    scale: float = 1.0


def measure(update: Update, at: Standing) -> Measure:
    """Payload and statistics decode to the layout's sizes, all finite; and how large the delta is beside others.

    Too large a delta is clipped to `norm_limit` ordinary ones, not refused: it may come from a device with data that
    nobody else has, which joins when all others have converged and their norms are small. Clipped, a broken or a
    hostile one can do no more than those (FedClipping; docs/decisions/0011).
    """
    try:
        delta = make_compressor(update.codec, at.layout).decompress(update.payload)
        decode_statistics(update.statistics, at.layout)
    except ProtocolError as error:
        raise Rejected("rejected", error.code, error.message) from None
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if not math.isfinite(norm):
        raise Rejected("rejected", Code.NAN, "the delta has a value that is not finite")
    size = at.layout.num_parameters
    known = len(at.recent_norms) >= MIN_NORMS
    own = float(np.linalg.norm(at.release.vector[:size].astype(np.float64)))
    limit = float(at.plan.norm_limit) * (float(np.median(at.recent_norms)) if known else max(1.0, own))
    return Measure(norm, limit / norm if 0 < limit < norm else 1.0)


HEADER_CHECKS: tuple[Check, ...] = (
    task_runs,
    fingerprint_matches,
    base_is_plausible,
    fresh_enough,
    once_a_version,
    waits_its_turn,
)


def admit_header(header: Header, at: Standing) -> None:
    """What can be told before the payload has come. Raises `Rejected`."""
    for check in HEADER_CHECKS:
        check(header, at)


def admit_offer(offer: Offer, at: Standing) -> None:
    """What can be told before a byte of the update has come. Raises `Rejected`."""
    admit_header(offer, at)
    size_is_plausible(offer, at)


def admit(update: Update, at: Standing) -> Measure:
    """Pass every check and return the delta's measure. Raises `Rejected`."""
    admit_header(update, at)
    digest_matches(update)
    return measure(update, at)
