"""Keep rates as flags give them and as tables name them."""


def rate_name(rate: float) -> str:
    """`"0.7"`: what a keep rate is called in the results."""
    return f"{rate:g}" if rate < 1 else "1.0"


def check_keep_rates(keep_rates: list[float]) -> None:
    """Raises `ValueError` unless there are distinct rates in (0, 1]."""
    if not keep_rates:
        raise ValueError("No keep rates were given.")
    for rate in keep_rates:
        if not 0 < rate <= 1:
            raise ValueError(f"The keep rates contain {rate}: every keep rate must lie in (0, 1].")
    if len({rate_name(rate) for rate in keep_rates}) < len(keep_rates):
        raise ValueError(f"The keep rates {keep_rates} contain one of them twice.")
