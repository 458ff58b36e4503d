"""All planted bugs: each with the rule that finds it, and a storm that brings it out soon."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from anabranch.simulator.experiment import Experiment
from tests.chaos.mutants import device, gateway
from tests.chaos.storms import storm_of


@dataclass(frozen=True)
class Mutant:
    """One bug. `rule` is in the violation that names it; `storm` is where the suite looks for it."""

    plant: Callable[[], AbstractContextManager[None]]
    rule: str
    storm: Experiment

    @property
    def name(self) -> str:
        """The bug, in words."""
        return self.plant.__name__.replace("_", " ")


MUTANTS = (
    Mutant(gateway.puback_before_record, "durable before PUBACK", storm_of("kill")),
    Mutant(gateway.puback_a_turn_early, "durable before PUBACK", storm_of("cut")),
    Mutant(gateway.record_without_fsync, "durable before told", storm_of("power")),
    Mutant(gateway.repeat_not_answered, "updates have no verdict", storm_of("kill", "cut", "lose")),
    Mutant(gateway.manifest_before_commit, "durable before announced", storm_of("kill")),
    Mutant(gateway.stale_will_believed, "no stale will", storm_of("cut", "late", "reorder", count=(10, 16))),
    Mutant(gateway.deadline_never_fires, "deadline kept", storm_of("partition")),
    Mutant(gateway.doubled_commit, "counted once", storm_of("kill")),
    Mutant(gateway.repeat_counted_as_new, "one verdict an update", storm_of("cut", "lose")),
    Mutant(device.folded_back_after_timeout, "ledgers agree", storm_of("partition", "broker-wiped")),
    Mutant(device.unverified_version, "only released versions", storm_of("tamper")),
    Mutant(device.bitmap_off_by_one, "no release since", storm_of("cut")),
)
