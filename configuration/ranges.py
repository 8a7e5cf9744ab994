"""Checks that a field's number lies in a range."""

from __future__ import annotations


def check_range(name: str, value: float, interval: str) -> None:
    """Checks that a number lies in an interval, written like `[0, 1e6)`.

    Raises:
        ValueError: naming the field, its value and the interval.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        kind = "be a whole number in" if isinstance(value, int) else "lie in"
        raise ValueError(f"{name} = {value} must {kind} {interval}")
