"""The fast evaluation is the literal one, for every shape and every tiling.

The literal one stands first: float64 numpy, all 39 features for every element, no code
shared with the package.
"""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from torch_lopt import Epsilons, LearnedOptimizer, SmallFC, optimizer, rule, small_fc
from torch_lopt.layout import TensorLayout, canonical_order, factored_axes, tiles


def literal_features(p, g, acc, eps, time_scales):
    """All features `[..., F]` of a canonical tensor, normalized; updates nothing."""
    m, v, rows, cols = acc["m"], acc["v"], acc["row"], acc["col"]
    root = 1 / np.sqrt(v + eps.second_moment)
    columns = [g, p, *m, v, *(mk * root for mk in m), root]
    if p.ndim >= 2:
        d1, _ = acc["axes"]
        row_factor, col_factor = [], []
        for row, col in zip(rows, cols, strict=True):
            mean = row.mean(d1, keepdims=True)
            ratio = np.maximum(row / (mean + eps.factored), eps.factored)
            row_factor.append(1 / np.sqrt(ratio))
            col_factor.append(1 / np.sqrt(np.maximum(col, eps.factored)))
        columns += [g * r * c for r, c in zip(row_factor, col_factor, strict=True)]
        last = [mk * r * c for mk, r, c in zip(m, row_factor, col_factor, strict=True)]
    else:
        columns += [
            g / np.sqrt(np.maximum(d + eps.factored, eps.factored)) for d in rows
        ]
        last = [
            mk / np.sqrt(d + eps.one_dimensional) for mk, d in zip(m, rows, strict=True)
        ]
    tile = [np.broadcast_to(x, p.shape) for x in (*rows, *cols)]
    columns += tile + [1 / np.sqrt(x + eps.row_col) for x in tile] + last
    normed = [x / np.sqrt(eps.normalizer + np.mean(x**2)) for x in columns]
    ones = np.ones(p.shape)
    normed += [ones * np.tanh(acc["t"] / s - 1) for s in time_scales]
    return np.stack(normed, -1)


def literal_start(p, rule):
    """Zero accumulators for a canonical tensor."""
    by_size = np.argsort(p.shape, kind="stable")
    axes = tuple(int(a) for a in by_size[-2:])
    k = len(rule.momentum_decays)
    acc = {"t": 0, "m": [0 * p] * k, "v": 0 * p, "axes": axes}
    if p.ndim >= 2:
        acc["row"] = [0 * p.mean(axes[1], keepdims=True)] * k
        acc["col"] = [0 * p.mean(axes[0], keepdims=True)] * k
    else:
        acc["row"] = acc["col"] = [0 * p] * k
    return acc


def blend(old, new, initial, offset):
    """Exponential average with a decay shifted by its learned offset."""
    decay = 1 - np.exp(10 * (np.log(1 - initial) / 10 + offset))
    decay = np.clip(decay, 0, 1)
    return decay * old + (1 - decay) * new


def accumulate(acc, g, rule):
    """Accumulators after this gradient."""
    square = g**2 + rule.epsilons.gradient_square
    d1, d0 = acc["axes"] if g.ndim >= 2 else (None, None)
    targets = {"m": g, "row": square, "col": square}
    if g.ndim >= 2:
        targets["row"] = square.mean(d0, keepdims=True)
        targets["col"] = square.mean(d1, keepdims=True)
    kinds = {"m": "momentum", "row": "adafactor", "col": "adafactor"}
    new = dict(acc, v=blend(acc["v"], g**2, rule.rms_decays[0], rule.rms_offsets[0]))
    for name, kind in kinds.items():
        decays = getattr(rule, f"{kind}_decays")
        offsets = getattr(rule, f"{kind}_offsets")
        new[name] = [
            blend(old, targets[name], d, o)
            for old, d, o in zip(acc[name], decays, offsets, strict=True)
        ]
    return new


def literal_step(p, g, acc, rule, weights):
    """New parameter and accumulators, all arrays float64 and canonical."""
    acc = accumulate(acc, g, rule)
    x = literal_features(p, g, acc, rule.epsilons, rule.time_scales)
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    names = ["input", *(f"linear_{i}" for i in range(rule.hidden_layers - 1))]
    for name in names:
        x = x @ w[f"network.{name}.weight"].T + w[f"network.{name}.bias"]
        x = np.maximum(x, 0)
    out = x @ w["network.output.weight"].T + w["network.output.bias"]
    change = out[..., 0] * np.exp(out[..., 1] * rule.exp_mult) * rule.step_mult
    acc["t"] += 1
    return p - change, acc


OFFSETS = {
    "momentum_offsets": (0.05, -0.04, 0.03),
    "rms_offsets": (-0.02,),
    "adafactor_offsets": (0.06, -0.05, 0.02),
}
# name -> (shape, layout argument, permutation to canonical order written by hand)
CASES = {
    "linear": ((7, 12), None, (1, 0)),
    "square": ((8, 8), None, (1, 0)),
    "conv": ((8, 3, 3, 3), None, (2, 3, 1, 0)),
    "conv_wide": ((3, 5, 2, 2), "conv", (2, 3, 1, 0)),
    "conv_transpose": ((6, 6, 3, 3), "conv_transpose", (2, 3, 0, 1)),
    "conv_1d": ((6, 4, 5), None, (2, 1, 0)),
    "embedding": ((20, 6), "embedding", (0, 1)),
    "row": ((1, 9), "canonical", (0, 1)),
    "stacked": ((4, 5, 6), "canonical", (0, 1, 2)),
    "stacked_torch": ((4, 6, 6), (0, 2, 1), (0, 2, 1)),
    "equal": ((4, 4, 4), "canonical", (0, 1, 2)),
    "vector": ((11,), None, (0,)),
    "one": ((1,), None, (0,)),
    "scalar": ((), None, ()),
}


def gradients(shape, steps, seed=0):
    """Gradients whose scale differs along every axis, so that exchanged axes show."""
    rng = np.random.default_rng(seed)
    scale = np.ones(shape)
    for axis, size in enumerate(shape):
        factor = np.exp(rng.standard_normal(size))
        scale = scale * factor.reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
    return [rng.standard_normal(shape) * scale for _ in range(steps)]


def deviation(rule_, weights, case, dtype=torch.float64, steps=4):
    """Largest difference to the literal run, relative to the largest displacement."""
    shape, layout, order = CASES[case]
    start = np.random.default_rng(1).standard_normal(shape)
    param = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    layouts = {} if layout is None else {"p": layout}
    opt = LearnedOptimizer([("p", param)], rule_, weights, layouts=layouts)
    want = np.atleast_1d(start.transpose(order))
    acc = literal_start(want, rule_)
    for g in gradients(shape, steps):
        param.grad = torch.tensor(g, dtype=dtype)
        opt.step()
        canonical = np.atleast_1d(np.asarray(g).transpose(order))
        want, acc = literal_step(want, canonical, acc, rule_, weights)
    got = np.atleast_1d(param.detach().numpy().transpose(order))
    moved = np.abs(want - np.atleast_1d(start.transpose(order))).max()
    return np.abs(got - want).max() / moved


@pytest.mark.parametrize("case", CASES)
def test_fast_is_literal(case, random_weights):
    rule_ = SmallFC(step_mult=0.01, **OFFSETS)
    weights = random_weights(rule_)
    assert deviation(rule_, weights, case) < 1e-12
    assert deviation(rule_, weights, case, torch.float32) < 2e-5


@pytest.mark.parametrize("case", ["conv", "linear", "stacked", "vector"])
@pytest.mark.parametrize("size", [1, 5, 17])
def test_tiles_do_not_change_the_step(case, size, random_weights, monkeypatch):
    monkeypatch.setattr(optimizer, "CPU_TILE", size)
    rule_ = SmallFC(step_mult=0.01, **OFFSETS)
    assert deviation(rule_, random_weights(rule_), case, steps=2) < 1e-12


@pytest.mark.parametrize("case", ["linear", "scalar"])
def test_other_sizes_of_the_rule(case, random_weights):
    """Hidden size, layers, number of decays, time scales and floors are all free."""
    rule_ = SmallFC(
        hidden_size=5,
        hidden_layers=3,
        exp_mult=0.1,
        momentum_decays=(0.5, 0.9),
        momentum_offsets=(0.01, 0.02),
        adafactor_decays=(0.8, 0.95),
        adafactor_offsets=(0.0, 0.3),
        epsilons=Epsilons(1e-3, 1e-2, 1e-4, 1e-3, 1e-5, 1e-2),
        time_scales=(2.0, 7.5),
    )
    assert rule_.input_size == 2 + 2 + 1 + 2 + 1 + 5 * 2 + 2 + 2
    assert deviation(rule_, random_weights(rule_), case) < 1e-12


def test_one_hidden_layer(random_weights):
    rule_ = SmallFC(hidden_layers=1)
    assert set(rule_.weight_shapes) == {
        f"network.{n}.{w}" for n in ("input", "output") for w in ("weight", "bias")
    }
    assert deviation(rule_, random_weights(rule_), "linear") < 1e-12


def test_a_zero_gradient_is_finite(random_weights):
    rule_ = SmallFC()
    param = torch.nn.Parameter(torch.ones(3, 4))
    opt = LearnedOptimizer([param], rule_, random_weights(rule_))
    param.grad = torch.zeros(3, 4)
    opt.step()
    assert torch.isfinite(param).all()
    assert not torch.equal(param, torch.ones(3, 4))


def test_a_square_matrix_steps_as_its_jax_transpose(random_weights):
    """Linear (out, in) and its transpose (in, out), declared canonical, agree."""
    rule_ = SmallFC(step_mult=0.01)
    weights = random_weights(rule_)
    start, grads = torch.randn(8, 8), gradients((8, 8), 3)
    ends = {}
    for layout in ("linear", "canonical", "embedding"):
        param = torch.nn.Parameter(
            start.T.clone() if layout == "canonical" else start.clone()
        )
        opt = LearnedOptimizer([("p", param)], rule_, weights, layouts={"p": layout})
        for g in grads:
            g = torch.tensor(g, dtype=torch.float32)
            param.grad = g.T.clone() if layout == "canonical" else g
            opt.step()
        ends[layout] = param.detach()
    torch.testing.assert_close(ends["linear"], ends["canonical"].T, atol=1e-6, rtol=0)
    assert (ends["linear"] - ends["embedding"]).abs().max() > 1e-4


def test_memory_format_does_not_change_the_step(random_weights):
    rule_ = SmallFC(step_mult=0.01)
    weights = random_weights(rule_)
    start, ends = torch.randn(4, 3, 5, 5), []
    for form in (torch.contiguous_format, torch.channels_last):
        param = torch.nn.Parameter(start.clone(memory_format=form))
        opt = LearnedOptimizer([param], rule_, weights)
        param.grad = torch.tensor(gradients((4, 3, 5, 5), 1)[0], dtype=torch.float32)
        opt.step()
        assert param.is_contiguous(memory_format=form)
        ends.append(param.detach())
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)


def test_decays_follow_their_formula():
    (shifted,) = rule.effective_decays([0.9], [0.05])
    assert shifted == pytest.approx(1 - 0.1 * np.exp(0.5), abs=1e-15)
    assert rule.effective_decays([0.9, 0.9], [9.0, -9.0]) == (0.0, 1.0)
    assert rule.effective_decays([0.999], [0.0]) == pytest.approx((0.999,), abs=1e-15)


def test_feature_names_are_the_papers_39():
    names = SmallFC().feature_names
    assert len(names) == SmallFC().input_size == 39
    assert names[:5] == (
        "gradient",
        "parameter",
        "momentum_0",
        "momentum_1",
        "momentum_2",
    )
    assert names[5] == "second_moment_0" and names[9] == "reciprocal_root_0"
    assert names[6] == "normalized_momentum_0" and names[10] == "factored_gradient_0"
    assert names[13] == "row_0" and names[16] == "column_0"
    assert names[19] == "reciprocal_root_row_0"
    assert names[22] == "reciprocal_root_column_0"
    assert names[25] == "factored_momentum_0"
    assert names[28] == "time_1" and names[38] == "time_100000"


def test_factored_axes_are_the_largest_with_ties_to_the_later():
    assert factored_axes((8, 8)) == (0, 1)
    assert factored_axes((12, 7)) == (1, 0)
    assert factored_axes((3, 3, 3, 8)) == (2, 3)
    assert factored_axes((9, 9, 2, 9)) == (1, 3)


def test_matrices_are_updated_without_a_copy():
    for shape in ((5, 7), (7, 5), (2, 5, 7), (6, 4, 3, 3)):
        tensor = torch.zeros(shape)
        layout = TensorLayout.of(shape, canonical_order("p", shape, None))
        assert layout.view(tensor).data_ptr() == tensor.data_ptr()


def test_tiles_cover_every_element_once():
    for shape in ((1, 1, 7), (3, 5, 11), (2, 1, 4)):
        for size in (1, 4, 9, 1000):
            seen = torch.zeros(shape)
            for tile in tiles(seen.shape, size):
                seen[tile] += 1
                assert seen[tile].numel() <= max(size, 1)
            assert (seen == 1).all()


def test_time_is_folded_into_the_bias(random_weights):
    rule_ = SmallFC()
    weights = random_weights(rule_)
    network = small_fc.split_network(rule_, weights, factored=True)
    embed = torch.tanh(7 / torch.tensor(rule_.time_scales, dtype=torch.float64) - 1)
    w = weights["network.input.weight"].double()[:, 28:]
    want = weights["network.input.bias"].double() + w @ embed
    got = small_fc.time_bias(network, rule_, 7)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-6)
    assert network.elementwise.shape == (32, 16)
    assert small_fc.split_network(rule_, weights, False).elementwise.shape == (32, 22)
