"""Checks and small questions about parameter groups, their parameters and state."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a parameter's state, () for numbers."""
    return {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}


def with_names_apart(group: dict[str, Any]) -> dict[str, Any]:
    """Returns the group with (name, parameter) pairs as `param_names` and `params`.

    torch.optim takes such pairs since 2.6, and then does the same.
    """
    params = group["params"]
    if isinstance(params, torch.Tensor | set):
        return group
    params = list(params)
    if not params or not all(isinstance(p, tuple) and len(p) == 2 for p in params):
        return group | {"params": params}
    names, tensors = zip(*params, strict=True)
    return group | {"params": list(tensors), "param_names": list(names)}


def names_of(group: Mapping[str, Any]) -> Sequence[str]:
    """Returns the names of a group's parameters, or numbers if it has none."""
    count = len(group["params"])
    return group.get("param_names") or [f"number {i}" for i in range(count)]


def compute_dtype(param: torch.Tensor) -> torch.dtype:
    """Returns the dtype of arithmetic and state: float32 for the half types."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def check_group(group: Mapping[str, Any], tensors: bool = True) -> None:
    """Checks the rates; those in tensors only on request, since it synchronizes."""
    for key in ("lr", "weight_decay"):
        value: Any = group.get(key)
        if isinstance(value, torch.Tensor):
            if not tensors:
                continue
            valid = value.numel() == 1 and not value.is_complex()
        else:
            valid = isinstance(value, numbers.Real)
        if not valid or not 0.0 <= float(value) < math.inf:
            shown = " ".join(repr(value).split())
            raise ValueError(f"{key} must be a number >= 0 and finite, is {shown}")


def has_dense_gradient(name: str, param: torch.Tensor) -> bool:
    """Returns whether there is a gradient; refuses a sparse one."""
    if param.grad is None:
        return False
    if param.grad.layout != torch.strided:
        raise ValueError(
            f"parameter {name} of shape {tuple(param.shape)} has a sparse gradient: "
            "only dense gradients can be used"
        )
    return True
