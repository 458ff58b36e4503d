"""What an update is worth by its age."""


def staleness_discount(staleness: int, exponent: float) -> float:
    """s(tau) = (1 + tau)^-p, the polynomial discount of FedAsync (Xie 2019) and FedBuff (Nguyen 2022)."""
    return float((1.0 + staleness) ** -exponent)
