"""Who attacks in one run, and how: what becomes of each device's examples, of what it learnt, and of what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anabranch.simulator.attacks.colluding import MOST, Overheard, make_craft, with_others
from anabranch.simulator.attacks.kinds import Terms, read_terms
from anabranch.simulator.attacks.poison import Backdoor, flip_labels, make_backdoor
from anabranch.simulator.attacks.protocol import Conduct
from anabranch.simulator.attacks.results import Attack, make_attack
from anabranch.simulator.experiment import Experiment
from anabranch.simulator.learning import Learning, Outcome
from anabranch.simulator.world import World
from edge_agent.events import Train
from edge_agent.sources import Dataset
from edge_agent.training import TrainingResult
from fl_protocol.bundle import Bundle
from fl_protocol.errors import ConfigError
from fl_protocol.tensors import Vector

__all__ = ["Attacked", "Attackers"]


@dataclass(frozen=True)
class Attackers:
    """The attackers of a run by name, with what each does; `backdoor` is what some of them try to teach, if any."""

    terms: Mapping[str, Terms]
    devices: int = 0
    buffer: int = MOST
    backdoor: Backdoor | None = None
    conducts: Mapping[str, Conduct] = field(default_factory=dict)  # of those that break the protocol

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        drawn: Mapping[str, str],
        shares: Sequence[tuple[str, Dataset]],
        bundle: Bundle,
        world: World,
    ) -> "Attackers":
        """`drawn` has the number of its section of [[attacks]] for each attacker. Raises `ConfigError`."""
        sections = [read_terms(section, f"attacks[{n}]") for n, section in enumerate(experiment.attacks)]
        terms = {name: sections[int(number)] for name, number in drawn.items()}
        blind = next((t.kind for t in terms.values() if t.level == "examples" and not experiment.training.real), None)
        if blind:
            raise ConfigError(f"{blind} changes examples, and the stand-in learns from none", "training.real = true")
        doors = {t for t in terms.values() if t.kind == "backdoor"}
        if len(doors) > 1:
            raise ConfigError("[[attacks]] has two backdoors", "give both the same settings, or leave out one")
        backdoor = None
        for door in doors:
            mine = [dataset for name, dataset in shares if terms.get(name) == door]
            backdoor = make_backdoor(door.target, door.poisoned, mine, bundle)
        conducts = {
            name: Conduct(t, bundle.layout, world.generator("attack", name))
            for name, t in terms.items()
            if t.level == "protocol"
        }
        buffer = experiment.plan.get("buffer", MOST)
        return cls(terms, len(shares), buffer if isinstance(buffer, int) else MOST, backdoor, conducts)

    def examples(self, device: str, dataset: Dataset, bundle: Bundle, world: World) -> Dataset:
        """What the device trains on."""
        terms = self.terms.get(device)
        if terms is not None and terms.kind == "label-flip":
            return flip_labels(dataset, bundle)
        if terms is not None and terms.kind == "backdoor" and self.backdoor:
            return self.backdoor.poison(dataset, world.generator("backdoor", device))
        return dataset

    def learning(self, inner: Learning) -> Learning:
        """What training comes to, with these among the fleet."""
        if not self.terms:
            return inner
        overheard, attacks = Overheard(self.buffer), dict[str, Attack]()
        for name, terms in self.terms.items():
            attack = make_attack(terms)
            if terms.level == "colluding":
                together = sum(other == terms for other in self.terms.values())
                attack = with_others(make_craft(terms.kind, terms.scale, self.devices, together), overheard)
            if attack is not None:
                attacks[name] = attack
        listening = any(terms.level == "colluding" for terms in self.terms.values())
        return Attacked(inner, attacks, set(self.terms), overheard if listening else None)


class Attacked:
    """A `Learning` some of whose devices lie. The honest are `overheard` when their outcome is asked for: a device
    asks when its training ends, so what colluders know is in the order of virtual time.

    So an outcome that depends on others is not the same whenever it is asked for; a device asks once.
    """

    def __init__(
        self, inner: Learning, attacks: Mapping[str, Attack], attackers: set[str], overheard: Overheard | None = None
    ) -> None:
        self._inner, self._attacks, self._attackers, self._overheard = inner, attacks, attackers, overheard

    def begin(self, device: str, order: Train, dataset: Dataset, /) -> Outcome:
        """See `Learning.begin`."""
        outcome = self._inner.begin(device, order, dataset)
        attack, overheard = self._attacks.get(device), self._overheard
        if attack is not None:
            return lambda: attack(outcome(), order)
        if overheard is None or device in self._attackers:
            return outcome

        def heard() -> TrainingResult:
            result = outcome()
            overheard.hear(device, result.parameters - order.base[: len(result.parameters)])
            return result

        return heard

    def measure(self, vector: Vector) -> tuple[float, float] | None:
        """See `Learning.measure`."""
        return self._inner.measure(vector)
