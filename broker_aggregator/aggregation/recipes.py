"""A plan's settings as a rule and an optimizer: reads as a sentence.

`rule = { name = "arc+nnm+trimmed-mean", attackers = "0.2" }`: wrappers from the outside to the inside, then the rule.
Impossible mixes explain themselves here, when the configuration is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from broker_aggregator.aggregation import Aggregator
from broker_aggregator.aggregation.arc import AdaptivelyClipped
from broker_aggregator.aggregation.breakdown import SURELY, attackers_among, chance_of_more, declared_f
from broker_aggregator.aggregation.bucketing import Bucketed
from broker_aggregator.aggregation.bulyan import Bulyan
from broker_aggregator.aggregation.centred_clipping import CentredClipping
from broker_aggregator.aggregation.clipped import Clipped
from broker_aggregator.aggregation.discounted import Discounted
from broker_aggregator.aggregation.fltrust import FLTrust
from broker_aggregator.aggregation.geometric_median import GeometricMedian
from broker_aggregator.aggregation.krum import MultiKrum
from broker_aggregator.aggregation.mean import WeightedMean
from broker_aggregator.aggregation.median import Median
from broker_aggregator.aggregation.near import Near
from broker_aggregator.aggregation.nnm import NearestNeighbourMixed
from broker_aggregator.aggregation.normalised import Normalised
from broker_aggregator.aggregation.screened import Screened
from broker_aggregator.aggregation.trimmed_mean import TrimmedMean
from broker_aggregator.server_optimizer import SGD, Adagrad, Adam, DelayAdaptive, ServerOptimizer, Yogi
from broker_aggregator.staleness import Discount
from fl_protocol.errors import ConfigError, ProtocolError
from fl_protocol.messages import Plan
from fl_protocol.parameters import Parameters

DEFAULT_RULE: Mapping[str, str] = {"name": "mean"}
ALIASES: Mapping[str, str] = {
    "fedavg": "mean",
    "fedbuff": "mean",
    "fedasync": "mean",
    "fedmedian": "median",
    "fedclipping": "clip+mean",
    "fednova": "nova+mean",
    "rfa": "geometric-median",
    "robust": "near+screen+mean",
}


@dataclass(frozen=True)
class Settings:
    """A rule's settings, all read and in range."""

    f: int = 0
    attackers: float = 0.0  # the share of the fleet that is assumed to be hostile
    examples: float = 0.5
    discount: Discount = Discount()  # noqa: RUF009  # frozen
    clip: str = "median"
    clip_norm: float = 1.0
    quantile: float = 0.5
    radius: float | None = None
    iterations: int = 32
    bucket: int = 2
    keep: int | None = None
    reach: float = 2.0
    memory: float = 0.999
    far: float | None = None
    trusted: str = ""


@dataclass(frozen=True)
class Rule:
    """How a rule is made, and how many updates it needs to stand `f` bad ones; None: it stands none."""

    make: Callable[[Settings], Aggregator]
    needs: Callable[[int], int] | None = None
    minds_age: bool = False  # it discounts stale updates itself


def _more_than_half(f: int) -> int:
    return 2 * f + 1


RULES: Mapping[str, Rule] = {
    "mean": Rule(lambda s: WeightedMean(s.examples, s.discount), minds_age=True),
    "median": Rule(lambda _: Median(), _more_than_half),
    "trimmed-mean": Rule(lambda s: TrimmedMean(s.f), _more_than_half),
    "krum": Rule(lambda s: MultiKrum(s.f, 1), lambda f: 2 * f + 3),
    "multi-krum": Rule(lambda s: MultiKrum(s.f, s.keep), lambda f: 2 * f + 3),
    "bulyan": Rule(lambda s: Bulyan(s.f), lambda f: 4 * f + 3),
    "geometric-median": Rule(lambda s: GeometricMedian(s.iterations), _more_than_half),
    "centred-clipping": Rule(lambda s: CentredClipping(s.radius, s.iterations), _more_than_half),
    "fltrust": Rule(lambda s: FLTrust(s.trusted)),
}
WRAPPERS: Mapping[str, Callable[[Aggregator, Settings], Aggregator]] = {
    "near": lambda inner, s: Near(inner, s.reach, s.memory),
    "arc": lambda inner, s: AdaptivelyClipped(inner, s.f),
    "nnm": lambda inner, s: NearestNeighbourMixed(inner, s.f),
    "bucketing": lambda inner, s: Bucketed(inner, s.bucket),
    "clip": lambda inner, s: Clipped(inner, s.clip, s.clip_norm, s.quantile),  # type: ignore[arg-type]  # one of three
    "nova": lambda inner, _: Normalised(inner),
    "screen": lambda inner, s: Screened(inner, s.far),
}
OPTIMIZERS = ("sgd", "adam", "yogi", "adagrad", "fadas")


def make_aggregator(plan: Plan) -> Aggregator:
    """The plan's rule. Raises `ConfigError` for impossible settings."""
    wrappers, name, settings = _read(plan)
    rule = RULES[name].make(settings)
    for wrapper in reversed(wrappers):
        rule = WRAPPERS[wrapper](rule, settings)
    return rule if RULES[name].minds_age else Discounted(rule, settings.discount)


def least_updates(plan: Plan) -> int:
    """How many updates a buffer must hold for its rule to stand the attackers that it may hold: fewer wait on."""
    wrappers, name, settings = _read(plan)
    needs = _needs(wrappers, name)
    if needs is None:
        return 1
    size = settings.bucket if "bucketing" in wrappers else 1
    return (needs(settings.f) - 1) * size + 1


def tolerated(plan: Plan) -> int:
    """f: how many bad updates in a buffer the plan's rule stands; 0 for one that stands none."""
    wrappers, name, settings = _read(plan)
    return settings.f if _needs(wrappers, name) else 0


def settled(plan: Plan, num_devices: int) -> Plan:
    """The plan with its robust rule's `f` in it. Raises `ConfigError` where a buffer may hold more attackers than that.

    X, the attackers in a buffer of K out of N devices, is hypergeometric; P(X > f) has to stay under 1 %. `num_devices`
    is N as the fleet is now: that of a larger one is rechecked when the plan changes.
    """
    wrappers, name, settings = _read(plan)
    needs = _needs(wrappers, name)
    if needs is None:
        told = sorted({"f", "attackers"} & set(plan.rule or {}))
        if told:
            raise ConfigError(f"rule.{told[0]} with the rule {name}, which stands no attacker", "choose `robust`")
        return plan
    assert plan.rule is not None
    groups, share = plan.tiers or 1, settings.attackers
    buffer = ceil(plan.buffer / groups)
    fleet = max(buffer, num_devices // groups)

    def enough(k: int) -> int | None:
        """The f that a buffer of k updates must and can stand; half of all buffers hold the mean's whole part."""
        rows = _rows(k, wrappers, settings)
        if rows < needs(k * attackers_among(fleet, share) // fleet):
            return None
        f = declared_f(k, fleet, share)
        return f if rows >= needs(f) else None

    f = settings.f if "f" in plan.rule else declared_f(buffer, fleet, share)
    chance = chance_of_more(f, buffer, fleet, share)
    if chance < SURELY and _rows(buffer, wrappers, settings) >= needs(f):
        return replace(plan, rule={**plan.rule, "f": str(f)})
    other = next((k for k in range(buffer, fleet + 1) if enough(k) is not None), None)
    mend = f"buffer = {other * groups} with f = {enough(other)}" if other else "no buffer of this fleet"
    if chance >= SURELY:
        why = f"a buffer holds more than {f} of them with a chance of {chance:.1%}"
    else:
        rows = "buckets" if "bucketing" in wrappers else "updates"
        why = f"it may hold {f} of them, and stands as many of {needs(f)} {rows} or more"
    raise ConfigError(
        f"rule {plan.rule['name']} with buffer = {plan.buffer} of {num_devices} devices, "
        f"{attackers_among(fleet, share)} of them hostile at attackers = {share:g}: {why}",
        f"{mend} would do; or assume fewer `attackers`",
    )


def _needs(wrappers: Sequence[str], name: str) -> Callable[[int], int] | None:
    """How many rows the chain needs to stand f; None where neither rule nor wrapper stands any."""
    return RULES[name].needs or (_more_than_half if {"near", "arc"} & set(wrappers) else None)


def _rows(updates: int, wrappers: list[str], settings: Settings) -> int:
    return -(-updates // settings.bucket) if "bucketing" in wrappers else updates


def _read(plan: Plan) -> tuple[list[str], str, Settings]:
    given = plan.rule or DEFAULT_RULE
    name = given.get("name", "")
    *wrappers, last = ALIASES.get(name, name).split("+")
    for word in wrappers:
        if word not in WRAPPERS:
            known = f"wrappers: {', '.join(sorted(WRAPPERS))}; then one of {', '.join(sorted(RULES))}"
            raise ConfigError(f"rule.name = {name!r}: there is no wrapper {word!r}", known)
    if last not in RULES:
        known = ", ".join(sorted({*RULES, *ALIASES}))
        raise ConfigError(
            f"rule.name = {name!r}: there is no rule {last!r}", f"rules: {known}; wrap them as arc+nnm+..."
        )
    _check_order(name, wrappers, last)
    p, words = Parameters(given, "rule"), {*wrappers, last}
    try:
        clip = p.choice("clip", ("median", "fixed", "quantile")) if "clip" in words else "median"
        settings = Settings(
            f=p.whole("f", 0, 0, 50_000),
            attackers=p.number("attackers", 0.2, 0.0, 0.49),
            examples=0.0 if _needs(wrappers, last) else _within("example_exponent", plan.example_exponent, 0, 1),
            discount=_discount(plan, p),
            clip=clip,
            clip_norm=p.number("clip_norm", 1.0, 1e-9, 999_999) if clip == "fixed" else 1.0,
            quantile=p.number("quantile", 0.5, 0.01, 0.99) if clip == "quantile" else 0.5,
            radius=p.number("radius", 1.0, 1e-9, 999_999) if last == "centred-clipping" and p.has("radius") else None,
            iterations=_iterations(p, last),
            bucket=p.whole("bucket", 2, 2, 100) if "bucketing" in words else 2,
            keep=p.whole("keep", 1, 1, 50_000) if last == "multi-krum" and p.has("keep") else None,
            reach=p.number("reach", 2.0, 1.0, 100.0) if "near" in words else 2.0,
            memory=p.number("memory", 0.999, 0.0, 1.0) if "near" in words else 0.999,
            far=p.number("far", 1.5, 1.0, 100.0) if "screen" in words and p.has("far") else None,
            trusted=p.text("trusted", "") if last == "fltrust" else "",
        )
        p.finish()
    except ProtocolError as error:
        raise ConfigError(
            f"rule: {error.message}", "docs/choosing-a-rule.md has every rule with its settings"
        ) from None
    if last == "fltrust" and not settings.trusted:
        raise ConfigError("rule.trusted is missing", "name the device beside the gateway that FLTrust goes by")
    return wrappers, last, settings


def _iterations(p: Parameters, rule: str) -> int:
    if rule == "centred-clipping":
        return p.whole("iterations", 3, 1, 10)
    return p.whole("iterations", 32, 1, 200) if rule == "geometric-median" else 32


def _check_order(name: str, wrappers: list[str], last: str) -> None:
    """Raises `ConfigError` for a chain in which a word can do nothing, or not what it says."""
    twice = next((word for word in wrappers if wrappers.count(word) > 1), None)
    if twice:
        raise ConfigError(f"rule.name = {name!r} says {twice} twice", "once is enough")
    for mixer in (word for word in wrappers if word in ("nnm", "bucketing")):
        inside = {*wrappers[wrappers.index(mixer) + 1 :], last}
        for word in ("screen", "near", "fltrust"):
            if word in inside:
                mend = f"leave {mixer} out" if word == "fltrust" else f"say {word} before it"
                raise ConfigError(f"rule.name = {name!r}: {word} knows devices, and {mixer} mixes them", mend)
    if "nnm" in wrappers and _needs(wrappers, last) is None:
        raise ConfigError(f"rule.name = {name!r}: {last} is no robust rule for nnm to mix for", "choose `robust`")


def _discount(plan: Plan, p: Parameters) -> Discount:
    exponent = _within("staleness_exponent", plan.staleness_exponent, 0, 4)
    kind = p.choice("staleness", ("polynomial", "hinge", "constant"))
    ends = kind == "polynomial" and p.has("staleness_end")
    return Discount(
        kind,  # type: ignore[arg-type]  # one of the three
        exponent,
        p.number("staleness_end", 0.0, 0.0, 4.0) if ends else None,
        p.whole("anneal", 100, 0, 1_000_000) if ends else 100,
        p.whole("hinge_after", 6, 0, 1_000_000) if kind == "hinge" else 6,
        p.number("hinge_slope", 10.0, 0.001, 1000) if kind == "hinge" else 10.0,
    )


def make_server_optimizer(plan: Plan) -> ServerOptimizer:
    """The plan's server optimizer. Raises `ConfigError` for impossible settings."""
    rate = _within("server_learning_rate", plan.server_learning_rate, 1e-6, 100)
    momentum = _within("server_momentum", plan.server_momentum, 0, 0.999)
    p = Parameters(plan.optimizer or {"name": "sgd"}, "optimizer")
    if p.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name = {p.name!r}", f"one of {', '.join(OPTIMIZERS)}")
    try:
        made: ServerOptimizer
        if p.name == "sgd":
            made = SGD(rate, momentum)
        elif p.name == "fadas":
            betas = p.number("beta1", 0.9, 0, 0.999), p.number("beta2", 0.99, 0, 0.99999)
            made = DelayAdaptive(rate, *betas, p.number("epsilon", 1e-4, 1e-9, 1), p.whole("delay", 4, 1, 1_000_000))
        elif p.name == "adagrad":
            made = Adagrad(rate, p.number("beta1", 0.9, 0, 0.999), p.number("epsilon", 1e-3, 1e-9, 1))
        else:
            kind = Adam if p.name == "adam" else Yogi
            betas = p.number("beta1", 0.9, 0, 0.999), p.number("beta2", 0.99, 0, 0.99999)
            made = kind(rate, *betas, p.number("epsilon", 1e-3, 1e-9, 1))
        p.finish()
    except ProtocolError as error:
        raise ConfigError(f"optimizer: {error.message}", "docs/choosing-a-rule.md has every setting") from None
    if momentum and p.name != "sgd":
        raise ConfigError(f"server_momentum = {momentum:g} with the optimizer {p.name}", "set optimizer.beta1 instead")
    return made


def _within(name: str, value: str, low: float, high: float) -> float:
    number = float(value)
    if not low <= number <= high:
        raise ConfigError(f"{name} = {value} is out of range", f"choose {name} from {low:g} to {high:g}")
    return number
