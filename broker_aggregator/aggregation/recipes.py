"""A plan's settings as a rule and an optimizer: reads as a sentence."""

from broker_aggregator.aggregation import Aggregator
from broker_aggregator.aggregation.mean import WeightedMean
from broker_aggregator.server_optimizer import SGD, ServerOptimizer
from fl_protocol.errors import ConfigError
from fl_protocol.messages import Plan


def make_aggregator(plan: Plan) -> Aggregator:
    """The plan's rule: a mean, discounted by age in asynchronous mode. Raises `ConfigError` for impossible settings."""
    staleness = _within("staleness_exponent", plan.staleness_exponent, 0, 4)
    examples = _within("example_exponent", plan.example_exponent, 0, 1)
    return WeightedMean(examples, staleness if plan.mode == "asynchronous" else 0.0)


def make_server_optimizer(plan: Plan) -> ServerOptimizer:
    """The plan's server optimizer. Raises `ConfigError` for impossible settings."""
    rate = _within("server_learning_rate", plan.server_learning_rate, 1e-6, 100)
    momentum = _within("server_momentum", plan.server_momentum, 0, 0.999)
    return SGD(rate, momentum)


def _within(name: str, value: str, low: float, high: float) -> float:
    number = float(value)
    if not low <= number <= high:
        raise ConfigError(f"{name} = {value} is out of range", f"choose {name} from {low:g} to {high:g}")
    return number
