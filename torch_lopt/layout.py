"""Layouts of PyTorch tensors: the order of their axes, factored axes and μP roles.

*Canonical* order is stacked and spatial axes, fan-in, fan-out. The rule sees a tensor
in canonical order, whatever its order in memory, so a `Linear` weight (out, in) is
treated as its transpose in JAX. The order determines which two axes the second moment
is factored over, and the tensor's role under μP.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

Shape = tuple[int, ...]
LayoutLike = str | Sequence[int]
Tile = tuple[slice, slice, slice]

READOUTS = ("multiplier", "step")

_BY_MODULE: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv_transpose"),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    ((nn.Linear,), "linear"),
)


def layouts_of_module(model: nn.Module) -> dict[str, str]:
    """Returns the layout of every `weight` that its module's type determines."""
    layouts: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for types, layout in _BY_MODULE:
            if isinstance(module, types):
                layouts[f"{prefix}.weight" if prefix else "weight"] = layout
    return layouts


def canonical_order(name: str, shape: Shape, layout: LayoutLike | None) -> Shape:
    """Returns the permutation of a tensor's axes that makes it canonical.

    Args:
        name: of the parameter, for messages.
        shape: of the parameter.
        layout: `"linear"` (out in), `"conv"` (out in spatial), `"conv_transpose"` (in
            out spatial), `"embedding"` (vocab width), `"canonical"`, a permutation, or
            None to decide by rank: 2 is linear, 3 to 5 is conv.

    Returns:
        The axis of the parameter for each canonical axis.
    """
    rank = len(shape)
    if layout is None:
        layout = "linear" if rank == 2 else "conv" if 3 <= rank <= 5 else "canonical"
        if rank > 5:
            raise ValueError(f"parameter {name} of shape {shape} needs a layout")
    if not isinstance(layout, str):
        order = tuple(layout)
        if sorted(order) != list(range(rank)):
            raise ValueError(
                f"layout {order} of parameter {name} is no permutation of the axes of "
                f"shape {shape}"
            )
        return order
    spatial = tuple(range(2, rank))
    known = {
        "canonical": (tuple(range(rank)), True),
        "linear": ((1, 0), rank == 2),
        "embedding": ((0, 1), rank == 2),
        "conv": ((*spatial, 1, 0), rank >= 3),
        "conv_transpose": ((*spatial, 0, 1), rank >= 3),
    }
    if layout not in known or not known[layout][1]:
        raise ValueError(
            f"layout {layout!r} of parameter {name} does not fit shape {shape}; "
            f"layouts are {sorted(known)} or a permutation"
        )
    return known[layout][0]


def factored_axes(shape: Shape) -> tuple[int, int]:
    """Returns the second largest and largest axis (d1, d0), for rank >= 2.

    The sort is stable: of two equal axes the later one counts as larger.
    """
    by_size = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return by_size[-2], by_size[-1]


def mup_scales(
    kind: str, fan_in_ratio: float, fan_out_ratio: float, readout: str
) -> float:
    """Returns the factor on a tensor's step under μP for Adam-like rules.

    Args:
        kind: `"hidden"`, `"output"`, or another role, whose factor is 1.
        fan_in_ratio: fan-in / base fan-in.
        fan_out_ratio: fan-out / base fan-out; no factor depends on it so far.
        readout: `"multiplier"`: the model multiplies its readout by base / fan-in
            itself; `"step"`: it does not, and the readout's step shrinks instead.

    References:
        Yang et al., arXiv:2203.03466, Tables 8 and 9.
    """
    del fan_out_ratio
    if kind == "hidden" or (kind == "output" and readout == "step"):
        return 1.0 / fan_in_ratio
    return 1.0


def step_scale(
    name: str, shape: Shape, base: Sequence[int], order: Shape, readout: str
) -> float:
    """Returns the μP factor; the axes that differ from the base determine the role."""
    if len(base) != len(shape) or min(base, default=1) < 1:
        raise ValueError(
            f"parameter {name} of shape {shape} has base shape {tuple(base)}: ranks "
            "must agree and sizes be positive"
        )
    if len(shape) < 2:
        return 1.0
    fan_in, fan_out = (shape[order[axis]] / base[order[axis]] for axis in (-2, -1))
    wider = (fan_in != 1.0, fan_out != 1.0)
    kind = {(True, True): "hidden", (True, False): "output", (False, True): "input"}
    return mup_scales(kind.get(wider, "fixed"), fan_in, fan_out, readout)


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """View `[B, M, N]` of one parameter, in the order of memory.

    M and N are the two factored axes, whichever comes first in the parameter; B holds
    the others. Tensors of rank below 2 are `[1, 1, N]`.

    Attributes:
        order: the axes of the parameter in the order (others, M, N).
        largest: -1 or -2: the axis of the view that is the largest, d0; None if the
            rank is below 2 and nothing is factored.
        step_scale: μP factor on the step.
    """

    order: Shape
    largest: int | None
    step_scale: float = 1.0

    @classmethod
    def of(
        cls, shape: Shape, canonical: Shape, step_scale: float = 1.0
    ) -> "TensorLayout":
        """Lays out a tensor whose canonical order is known."""
        if len(shape) < 2:
            return cls(tuple(range(len(shape))), None, step_scale)
        d1, d0 = (
            canonical[axis]
            for axis in factored_axes(tuple(shape[i] for i in canonical))
        )
        others = tuple(axis for axis in range(len(shape)) if axis not in (d0, d1))
        return cls((*others, *sorted((d0, d1))), -1 if d0 > d1 else -2, step_scale)

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor as `[B, M, N]`, a copy where memory allows no view."""
        permuted = tensor.permute(self.order)
        if self.largest is None:
            return permuted.reshape(1, 1, -1)
        return permuted.reshape(-1, *permuted.shape[-2:])

    def write(self, view: torch.Tensor, tensor: torch.Tensor) -> None:
        """Writes a `[B, M, N]` back into the tensor that it was made from."""
        if view.data_ptr() != tensor.data_ptr():
            permuted = tensor.permute(self.order)
            permuted.copy_(view.reshape(permuted.shape))


def tiles(shape: torch.Size, size: int) -> Iterator[Tile]:
    """Cuts `[B, M, N]` into blocks of about `size` elements."""
    batches, rows, columns = shape
    n = min(columns, max(size // 8, 1))
    m = min(rows, max(size // n, 1))
    b = min(batches, max(size // (n * m), 1))
    for i in range(0, batches, b):
        for j in range(0, rows, m):
            for k in range(0, columns, n):
                yield slice(i, i + b), slice(j, j + m), slice(k, k + n)


def cut(tensor: torch.Tensor, tile: Tile) -> torch.Tensor:
    """Returns a tile of `[..., B, M, N]`; axes of size 1 are kept for broadcasting."""
    index = [
        slice(None) if size == 1 else part
        for size, part in zip(tensor.shape[-3:], tile, strict=True)
    ]
    return tensor[(..., *index)]


def base_shapes(
    base: nn.Module | Mapping[str, Sequence[int]] | None,
) -> dict[str, Shape] | None:
    """Returns name to shape of the base model, from a module or a mapping."""
    if isinstance(base, nn.Module):
        named = base.named_parameters(remove_duplicate=False)
        return {name: tuple(p.shape) for name, p in named}
    if base is None:
        return None
    if not isinstance(base, Mapping):
        raise ValueError(
            f"base must be a module, a mapping from name to shape, or None, is a "
            f"{type(base).__name__}"
        )
    # Tensors stand for their shapes: a state_dict is a likely thing to pass.
    shapes = {name: getattr(value, "shape", value) for name, value in base.items()}
    for name, shape in shapes.items():
        sizes = isinstance(shape, Sequence) and not isinstance(shape, str)
        if not sizes or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"base shape of {name} must be sizes, is {shape!r}")
    return {name: tuple(shape) for name, shape in shapes.items()}
