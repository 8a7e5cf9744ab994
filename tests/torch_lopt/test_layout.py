"""Layouts by rank, by module and by word; step scales under μP."""

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from torch_lopt import LearnedOptimizer, SmallFC
from torch_lopt.layout import canonical_order, layouts_of_module, mup_scales

MUP = SmallFC(step_mult=0.01, rules="ADAM_LIKE")


class Net(nn.Module):
    """One parameter of every kind, at a width."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.hidden = nn.Linear(width, 3 * width)
        self.conv = nn.Conv2d(3 * width, width, 3)
        self.up = nn.ConvTranspose1d(width, 2 * width, 3)
        self.depthwise = nn.Conv1d(width, width, 3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(()))
        self.readout = nn.Linear(width, 5)


def scales(model, **options):
    """The factor on each parameter's step, measured: with a base over without."""
    weights = {name: torch.randn(shape) for name, shape in MUP.weight_shapes.items()}
    steps = []
    for base in (options.pop("base"), None):
        params = {n: nn.Parameter(p.detach().double()) for n, p in model.items()}
        opt = LearnedOptimizer(params.items(), MUP, weights, base=base, **options)
        for p in params.values():
            p.grad = torch.linspace(-1, 1, p.numel(), dtype=p.dtype).reshape(p.shape)
        opt.step()
        steps.append({n: (p - model[n]).detach() for n, p in params.items()})
    ratios = {n: (steps[0][n] / steps[1][n]) for n in model}
    for ratio in ratios.values():
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    return {n: round(ratio.flatten()[0].item(), 9) for n, ratio in ratios.items()}


def test_step_scales_of_every_kind():
    model = Net(8)
    named = dict(model.named_parameters())
    layouts = layouts_of_module(model)
    got = scales(named, base=Net(2), layouts=layouts)
    hidden = {"hidden.weight", "conv.weight", "up.weight"}
    assert got == {name: 0.25 if name in hidden else 1.0 for name in named}
    stepped = scales(named, base=Net(2), layouts=layouts, readout="step")
    assert stepped == got | {"readout.weight": 0.25}


def test_base_may_be_shapes_or_lie_on_the_meta_device():
    model = Net(8)
    named = dict(model.named_parameters())
    with torch.device("meta"):
        base = Net(2)
    shapes = {name: list(p.shape) for name, p in base.named_parameters()}
    layouts = layouts_of_module(model)
    assert scales(named, base=base, layouts=layouts) == scales(
        named, base=shapes, layouts=layouts
    )


def test_an_unchanged_width_scales_nothing():
    named = dict(Net(4).named_parameters())
    for readout in ("multiplier", "step"):
        got = scales(named, base=Net(4), readout=readout)
        assert set(got.values()) == {1.0}


def test_standard_rules_scale_nothing(random_weights):
    rule = SmallFC()
    model = nn.Linear(8, 8)
    opt = LearnedOptimizer(model, rule, random_weights(rule), base=nn.Linear(2, 2))
    assert {v.step_scale for v in opt._tensor_layouts.values()} == {1.0}


def test_the_table():
    for readout in ("multiplier", "step"):
        assert mup_scales("hidden", 4.0, 4.0, readout) == 0.25
        assert mup_scales("input", 1.0, 4.0, readout) == 1.0
        assert mup_scales("fixed", 1.0, 1.0, readout) == 1.0
    assert mup_scales("output", 4.0, 1.0, "multiplier") == 1.0
    assert mup_scales("output", 4.0, 1.0, "step") == 0.25


def test_base_errors_are_one_line(random_weights):
    weights = random_weights(MUP)
    named = list(nn.Linear(4, 6).named_parameters())

    def message(**options):
        with pytest.raises(ValueError) as info:
            LearnedOptimizer(named, MUP, weights, **options)
        assert "\n" not in str(info.value)
        return str(info.value)

    assert "base=" in message()
    missing = message(base={"weight": (3, 2)})
    assert "bias" in missing and "(6,)" in missing
    wrong = message(base={"weight": (3,), "bias": (3,)})
    assert "weight" in wrong and "(6, 4)" in wrong and "(3,)" in wrong
    zero = message(base={"weight": (0, 2), "bias": (3,)})
    assert "weight" in zero and "(0, 2)" in zero
    assert "readout" in message(base=None, readout="forward")
    LearnedOptimizer(named, MUP, weights, base=None)


def test_module_types_tell_the_layout():
    assert layouts_of_module(Net(4)) == {
        "embed.weight": "embedding",
        "hidden.weight": "linear",
        "conv.weight": "conv",
        "up.weight": "conv_transpose",
        "depthwise.weight": "conv",
        "readout.weight": "linear",
    }
    assert layouts_of_module(nn.Linear(2, 3)) == {"weight": "linear"}


def test_a_module_and_its_named_parameters_with_layouts_agree(write_folder):
    folder, ends = write_folder(), []
    for pass_module in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6))
        if pass_module:
            opt = LearnedOptimizer.from_pretrained(model, folder)
        else:
            opt = LearnedOptimizer.from_pretrained(
                model.named_parameters(), folder, layouts={"0.weight": "embedding"}
            )
        for p in model.parameters():
            p.grad = torch.randn_like(p) * torch.arange(6)
        opt.step()
        ends.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_canonical_orders():
    assert canonical_order("p", (2, 3), None) == (1, 0)
    assert canonical_order("p", (2, 3, 4, 5), None) == (2, 3, 1, 0)
    assert canonical_order("p", (2, 3, 4), "conv_transpose") == (2, 0, 1)
    assert canonical_order("p", (2, 3), "embedding") == (0, 1)
    assert canonical_order("p", (2, 3, 4), [0, 2, 1]) == (0, 2, 1)
    assert canonical_order("p", (5,), None) == (0,)
    assert canonical_order("p", (), None) == ()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3), "conv"),
        ((2, 3, 4), "linear"),
        ((2,), "embedding"),
        ((2, 3), "chequered"),
        ((2, 3), (0, 0)),
        ((2, 3), (0, 1, 2)),
        ((1,) * 6, None),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(shape, layout):
    with pytest.raises(ValueError, match=r"layer\.weight"):
        canonical_order("layer.weight", shape, layout)


def test_a_layout_for_no_parameter_is_refused(random_weights):
    rule = SmallFC()
    with pytest.raises(ValueError, match="wieght"):
        LearnedOptimizer(
            nn.Linear(2, 2), rule, random_weights(rule), layouts={"wieght": "linear"}
        )
