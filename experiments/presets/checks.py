"""Checks of configuration fields that several commands share."""

from __future__ import annotations

import math
from typing import Any


def require_positive(config: Any, *names: str) -> None:
    """Raises `ValueError` if a field is neither None nor a positive finite number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} = {value} must be positive")
