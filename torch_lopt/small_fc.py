"""The small_fc rule for one tensor: accumulators, features, network, step.

A literal evaluation would form 39 features for every element. This one computes the
same function with less:

1. The time features are one vector for all elements: with their weights, a bias.
2. The row and column features depend on one of the two factored axes only: their part
   of the first layer is A[row] + B[column].
3. That leaves 16 elementwise features (22 for rank below 2, where "row" and "column"
   are both the diagonal moment, so that their weights are added).
4. The division of a feature by its RMS moves into the first layer's weights.
5. The elements are walked in tiles that stay in cache, so that nothing of the size
   elements x features ever exists.

Axis letters: F features, H hidden units, K decays, [B, M, N] a tensor's view
(see `layout.TensorLayout`), n the elements of a tile.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_lopt.layout import Tile, cut, tiles
from torch_lopt.rule import Epsilons, SmallFC


class Network(NamedTuple):
    """The weights, with the first layer split by the kind of its inputs.

    Attributes:
        elementwise: `[H, F]`, for the features in the order of `fill_features`.
        row: `[H, 2 K]`, for row and reciprocal_root_row; empty for rank below 2.
        column: `[H, 2 K]`, likewise.
        time: `[H, time features]`.
        bias: `[H]`.
        rest: the later layers, each (`[out, in]`, `[out, 1]`).
    """

    elementwise: Tensor
    row: Tensor
    column: Tensor
    time: Tensor
    bias: Tensor
    rest: tuple[tuple[Tensor, Tensor], ...]


def split_network(
    rule: SmallFC, weights: Mapping[str, Tensor], factored: bool
) -> Network:
    """Splits the weights for tensors of rank >= 2 (factored) or below."""
    first = weights["network.input.weight"]
    part = {group: first[:, place] for group, place in rule.groups.items()}
    common = first[:, : rule.groups["factored_gradient"].stop]
    row = torch.cat([part["row"], part["reciprocal_root_row"]], 1)
    column = torch.cat([part["column"], part["reciprocal_root_column"]], 1)
    middle = [] if factored else [row + column]
    names = [f"linear_{i}" for i in range(rule.hidden_layers - 1)] + ["output"]
    return Network(
        elementwise=torch.cat([common, *middle, part["factored_momentum"]], 1),
        row=row if factored else row[:, :0],
        column=column if factored else column[:, :0],
        time=part["time"],
        bias=weights["network.input.bias"],
        rest=tuple(
            (weights[f"network.{n}.weight"], weights[f"network.{n}.bias"][:, None])
            for n in names
        ),
    )


def time_bias(network: Network, rule: SmallFC, step: int) -> Tensor:
    """Returns the first layer's bias `[H]` with the time features of this step in it.

    Args:
        network: the weights.
        rule: the hyperparameters.
        step: updates of this tensor done before, 0 in the first.
    """
    features = [math.tanh(step / scale - 1.0) for scale in rule.time_scales]
    return network.bias + network.time @ network.time.new_tensor(features)


def init_state(view: Tensor, rule: SmallFC, largest: int | None) -> dict[str, Any]:
    """Returns zero accumulators for a view `[B, M, N]`, in its dtype.

    `momentum` `[Km, B, M, N]`, `second_moment` `[1, B, M, N]`, and either `diagonal`
    `[Kf, 1, 1, N]` or `row` and `column`, with size 1 along the axis averaged over.
    """
    shape = list(view.shape)
    factored = len(rule.adafactor_decays)
    state: dict[str, Any] = {
        "step": 0,
        "momentum": view.new_zeros(len(rule.momentum_decays), *shape),
        "second_moment": view.new_zeros(len(rule.rms_decays), *shape),
    }
    if largest is None:
        return state | {"diagonal": view.new_zeros(factored, *shape)}
    row, column = shape.copy(), shape.copy()
    row[largest] = column[-3 - largest] = 1
    return state | {
        "row": view.new_zeros(factored, *row),
        "column": view.new_zeros(factored, *column),
    }


def update_(
    param: Tensor,
    gradient: Tensor,
    state: Mapping[str, Any],
    rule: SmallFC,
    network: Network,
    bias: Tensor,
    *,
    largest: int | None,
    step_size: float,
    decay: float,
    late_decay: float,
    tile_size: int,
) -> None:
    """Updates one tensor and its accumulators in place.

    Args:
        param: `[B, M, N]`.
        gradient: `[B, M, N]`, of the same dtype.
        state: from `init_state`; its step counter is left alone.
        rule: the hyperparameters.
        network: from `split_network`, of the same dtype and device.
        bias: `[H]`, from `time_bias`.
        largest: axis of the largest size, -1 or -2; None for rank below 2.
        step_size: learning rate times μP factor times `step_mult`.
        decay: share of the parameter before the step that weight decay takes away.
        late_decay: likewise, of the parameter after the step.
        tile_size: elements per tile.
    """
    eps = rule.epsilons
    update_factored_(state, gradient, rule, largest)
    factors = preconditioner(state, eps, largest)
    blocks = list(tiles(param.shape, tile_size))
    # Summed in place: a small tensor kept from every tile would pin the heap around it.
    squares = torch.zeros_like(network.elementwise[0], dtype=torch.float64)
    features = torch.empty(0)
    for tile in blocks:
        update_moments_(state, gradient, rule, tile)
        features = fill_features(param, gradient, state, factors, eps, tile)
        squares += features.square().sum(1)
    scale = torch.rsqrt(eps.normalizer + squares / param.numel())
    first = network.elementwise * scale.to(param.dtype)
    vectors = vector_terms(state, network, eps)
    for tile in blocks:
        if len(blocks) > 1:
            features = fill_features(param, gradient, state, factors, eps, tile)
        block = cut(param, tile)
        hidden = first_layer(features, first, vectors, bias, tile)
        direction, magnitude = rest_of_network(network, hidden)
        change = direction * torch.exp_(magnitude.mul_(rule.exp_mult))
        if rule.largest_step is not None:
            change.clamp_(-rule.largest_step, rule.largest_step)
        if decay != 0.0:
            block.mul_(1.0 - decay)
        block.sub_(change.view(block.shape), alpha=step_size)
        if late_decay != 0.0:
            block.mul_(1.0 - late_decay)


def update_factored_(
    state: Mapping[str, Any], gradient: Tensor, rule: SmallFC, largest: int | None
) -> None:
    """Averages g² into the factored (or diagonal) second moments."""
    square = gradient.square().add_(rule.epsilons.gradient_square)
    if largest is None:
        targets = {"diagonal": square}
    else:
        targets = {
            "row": square.mean(largest, keepdim=True),
            "column": square.mean(-3 - largest, keepdim=True),
        }
    for name, target in targets.items():
        for moment, beta in zip(state[name], rule.adafactor_betas, strict=True):
            moment.lerp_(target, 1.0 - beta)


def update_moments_(
    state: Mapping[str, Any], gradient: Tensor, rule: SmallFC, tile: Tile
) -> None:
    """Averages g and g² of one tile into momenta and second moment."""
    g = cut(gradient, tile)
    for moment, beta in zip(state["momentum"], rule.momentum_betas, strict=True):
        cut(moment, tile).lerp_(g, 1.0 - beta)
    for moment, beta in zip(state["second_moment"], rule.rms_betas, strict=True):
        cut(moment, tile).lerp_(g.square(), 1.0 - beta)


class Factors(NamedTuple):
    """Factors of the factored gradient, `row * column`, both broadcast."""

    row: Tensor
    column: Tensor


def preconditioner(
    state: Mapping[str, Any], eps: Epsilons, largest: int | None
) -> Factors | None:
    """Returns Adafactor's factors `[K, B, M, 1]` and `[K, B, 1, N]`, or None."""
    if largest is None:
        return None
    row = state["row"]
    ratio = row / (row.mean(-3 - largest, keepdim=True) + eps.factored)
    return Factors(
        ratio.clamp_(min=eps.factored).rsqrt_(),
        state["column"].clamp(min=eps.factored).rsqrt_(),
    )


def fill_features(
    param: Tensor,
    gradient: Tensor,
    state: Mapping[str, Any],
    factors: Factors | None,
    eps: Epsilons,
    tile: Tile,
) -> Tensor:
    """Returns the elementwise features of one tile, `[F, n]`, not normalized."""
    p, g = cut(param, tile), cut(gradient, tile)
    m, v = cut(state["momentum"], tile), cut(state["second_moment"], tile)
    k = len(m)
    sizes = [3 + k, k, 1, k, *([k, k] if factors is None else []), k]
    out = p.new_empty(sum(sizes), *p.shape)
    raw, normalized, root, by_factor, *diagonal, last = out.split(sizes)
    raw[0], raw[1], raw[2:-1], raw[-1:] = g, p, m, v
    torch.add(v, eps.second_moment, out=root).rsqrt_()
    torch.mul(m, root, out=normalized)
    if factors is None:
        d = cut(state["diagonal"], tile)
        diagonal[0].copy_(d)
        torch.add(d, eps.row_col, out=diagonal[1]).rsqrt_()
        torch.add(d, eps.factored, out=by_factor).clamp_(min=eps.factored).rsqrt_()
        by_factor.mul_(g)
        torch.add(d, eps.one_dimensional, out=last).rsqrt_().mul_(m)
    else:
        torch.mul(cut(factors.row, tile), cut(factors.column, tile), out=last)
        torch.mul(last, g, out=by_factor)
        last.mul_(m)
    return out.flatten(1)


class VectorTerm(NamedTuple):
    """Features of one axis `[2 K, B, M or 1, N or 1]` and their weights `[H, 2 K]`."""

    features: Tensor
    weights: Tensor


def vector_terms(
    state: Mapping[str, Any], network: Network, eps: Epsilons
) -> list[VectorTerm]:
    """Returns row and column features with weights that include their normalization."""
    if "row" not in state:
        return []
    terms = []
    for moment, weights in (
        (state["row"], network.row),
        (state["column"], network.column),
    ):
        features = torch.cat([moment, torch.rsqrt(moment + eps.row_col)])
        # Every entry stands for equally many elements: the mean over the entries is the
        # mean over the tensor.
        mean_square = features.square().mean((1, 2, 3))
        scale = torch.rsqrt(eps.normalizer + mean_square)
        terms.append(VectorTerm(features, weights * scale))
    return terms


def first_layer(
    features: Tensor,
    weights: Tensor,
    vectors: list[VectorTerm],
    bias: Tensor,
    tile: Tile,
) -> Tensor:
    """Returns the first hidden layer of one tile, `[H, n]`."""
    if not vectors:
        return torch.addmm(bias[:, None], weights, features).relu_()
    parts = [cut(v.features, tile) for v in vectors]
    row, column = (
        (v.weights @ part.flatten(1)).view(-1, *part.shape[1:])
        for v, part in zip(vectors, parts, strict=True)
    )
    hidden = (row + bias[:, None, None, None]) + column
    return hidden.flatten(1).addmm_(weights, features).relu_()


def rest_of_network(network: Network, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Returns direction and magnitude `[n]` from the first hidden layer `[H, n]`."""
    *inner, (weights, bias) = network.rest
    for w, b in inner:
        hidden = torch.addmm(b, w, hidden).relu_()
    direction, magnitude = torch.addmm(bias, weights, hidden)
    return direction, magnitude
