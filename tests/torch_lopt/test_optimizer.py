"""The manners of torch.optim: groups, closures, checkpoints, dtypes, refusals."""

import copy
import dataclasses
import io

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from torch_lopt import LearnedOptimizer, SmallFC

RULE = SmallFC(step_mult=0.01)


@pytest.fixture
def build(random_weights):
    """Builds the optimizer over parameters, with random weights."""
    weights = random_weights(RULE)
    return lambda params, **options: LearnedOptimizer(params, RULE, weights, **options)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(12, 5))
    return model.to(dtype)


def train(model, opt, steps, first=0):
    """Steps on losses that depend on the step's number alone."""
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(t)
        dtype = next(model.parameters()).dtype
        x = torch.randn(3, 2, 5, generator=generator).to(dtype)
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def moved(before, after):
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_closure_is_called_with_gradients_and_its_value_returned(build):
    model = network()
    opt = build(model)

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = model(torch.ones(3, 2, 5)).square().mean()
        loss.backward()
        return loss

    before = values(model)
    with torch.no_grad():
        loss = opt.step(closure=closure)
    assert loss.item() > 0
    assert all(moved(before, values(model)))
    assert opt.step() is None


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_resume_is_bit_equal(build, dtype):
    straight = network(dtype)
    opt = build(straight)
    train(straight, opt, 3)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "opt": opt.state_dict()}, file)
    train(straight, opt, 3, first=3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(saved["model"])
    again = build(resumed)
    again.load_state_dict(saved["opt"])
    train(resumed, again, 3, first=3)
    assert all(map(torch.equal, values(straight), values(resumed)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for state in again.state.values():
        assert {v.dtype for v in state.values() if torch.is_tensor(v)} == {wide}


def test_loading_copies(build):
    """Steps after loading leave the loaded dictionary alone."""
    model = network()
    opt = build(model)
    train(model, opt, 1)
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    other_model = network()
    other = build(other_model)
    other.load_state_dict(saved)
    train(other_model, other, 1)
    for index, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(
                *map(torch.as_tensor, (value, saved["state"][index][key]))
            )


def test_state_of_another_shape_is_refused(build):
    wide, narrow = nn.Linear(4, 4), nn.Linear(4, 2)
    opt = build(wide)
    wide(torch.ones(1, 4)).sum().backward()
    opt.step()
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        build(narrow).load_state_dict(opt.state_dict())


def test_a_copy_steps_like_the_original(build):
    model = network()
    opt = build(model, lr=0.5, weight_decay=0.1)
    train(model, opt, 2)
    other_model, other = copy.deepcopy((model, opt))
    train(model, opt, 2, first=2)
    train(other_model, other, 2, first=2)
    assert all(map(torch.equal, values(model), values(other_model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_parameters_take_the_float32_step(build, dtype):
    start = torch.randn(6, 6).to(dtype)
    half, full = nn.Parameter(start.clone()), nn.Parameter(start.float())
    half.grad = torch.randn(6, 6).to(dtype)
    full.grad = half.grad.float()
    for p in (half, full):
        build([p]).step()
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))
    assert not torch.equal(half, start)


def test_parameters_without_gradient_are_skipped(build):
    model = network()
    opt = build(model)
    before = values(model)
    opt.step()
    assert not any(moved(before, values(model))) and not opt.state
    train(model, opt, 1)
    model[0].weight.grad = None
    before = values(model)
    opt.step()
    assert moved(before, values(model)) == [False, True, True, True]
    steps = [opt.state[p]["step"] for p in model.parameters()]
    assert steps == [1, 2, 2, 2]


def test_tensors_without_elements_are_left_alone(build):
    params = [nn.Parameter(torch.ones(s)) for s in ((0,), (3, 0), (2, 0, 3), (2, 3))]
    opt = build([(f"p{i}", p) for i, p in enumerate(params)])
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    assert [p.shape for p in params[:3]] == [(0,), (3, 0), (2, 0, 3)]
    assert len(opt.state) == 1 and not torch.equal(params[3], torch.ones(2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_spoils_its_own_tensor_only(build, bad):
    ends = []
    for poison in (False, True):
        model = network()
        opt = build(model)
        train(model, opt, 1)
        if poison:
            model[0].weight.grad[0, 0, 0] = bad
        opt.step()
        ends.append(values(model))
    assert moved(*ends) == [True, False, False, False]
    assert not torch.isfinite(ends[1][0]).all()


def test_groups_have_their_own_rate_and_decay(build):
    start, grad = torch.randn(3, 4), torch.randn(3, 4)

    def end(**group):
        param = nn.Parameter(start.clone())
        param.grad = grad.clone()
        other = nn.Parameter(torch.ones(2))
        build([{"params": [other]}, {"params": [param], **group}], lr=1.0).step()
        return param.detach()

    step = end() - start
    torch.testing.assert_close(end(lr=0.5), start + 0.5 * step)
    assert torch.equal(end(lr=0.0, weight_decay=0.3), start)
    # Decoupled: a share of the parameter before the step, times the learning rate.
    want = start + 0.5 * (step - 0.3 * start)
    torch.testing.assert_close(end(lr=0.5, weight_decay=0.3), want)


def test_decay_spares_vectors_unless_their_group_says_otherwise(build):
    """Shares taken away from a matrix and from a vector."""

    def shares(groups=lambda matrix, vector: [matrix, vector], **options):
        starts = (torch.randn(3, 4), torch.randn(5))
        ends = []
        for weight_decay in (0.3, 0.0):
            params = [nn.Parameter(start.clone()) for start in starts]
            for param in params:
                param.grad = torch.ones_like(param)
            given = groups(*params)
            for group in given:
                if isinstance(group, dict) and "weight_decay" in group:
                    group["weight_decay"] = weight_decay
            build(given, lr=0.5, weight_decay=weight_decay, **options).step()
            ends.append([param.detach() for param in params])
        decayed, plain = ends
        return [
            ((p - d) / start).mean().item()
            for d, p, start in zip(decayed, plain, starts, strict=True)
        ]

    def own(matrix, vector):
        return [{"params": [matrix]}, {"params": [vector], "weight_decay": None}]

    def flagged(matrix, vector):
        return [{"params": [matrix, vector], "decay_vectors": True}]

    near = lambda values: pytest.approx(values, abs=1e-5)  # noqa: E731
    assert shares() == near([0.15, 0.0])
    assert shares(own) == near([0.15, 0.15])
    assert shares(flagged) == near([0.15, 0.15])
    matrix, vector = shares(decay="pylo")
    assert abs(matrix) > 0.1 and abs(vector) > 0.1


@pytest.mark.parametrize("decay", ["decoupled", "pylo"])
def test_decay_and_the_step_scale_of_mup(random_weights, decay):
    """The step scale multiplies the step, and the decay only in PyLO's form."""
    rule = dataclasses.replace(RULE, rules="ADAM_LIKE")
    weights = random_weights(rule)
    start = torch.randn(8, 8, dtype=torch.float64)

    def end(weight_decay, base):
        param = nn.Parameter(start.clone())
        param.grad = torch.ones_like(param)
        opt = LearnedOptimizer(
            [("p", param)],
            *(rule, weights),
            base={"p": base},
            lr=0.5,
            weight_decay=weight_decay,
            decay=decay,
        )
        opt.step()
        return param.detach()

    step = (end(0.0, (8, 8)) - start) / 4
    torch.testing.assert_close(end(0.0, (2, 2)), start + step)
    want = {
        "decoupled": start + step - 0.5 * 0.3 * start,
        "pylo": (start + step) * (1 - 0.5 / 4 * 0.3),
    }[decay]
    torch.testing.assert_close(end(0.3, (2, 2)), want)


def test_a_checkpoint_from_before_decay_spared_vectors_is_read(build):
    model = network()
    opt = build(model, weight_decay=0.1, decay="pylo")
    train(model, opt, 1)
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        del group["decay_vectors"], group["decay"]
    opt.load_state_dict(saved)
    train(model, opt, 1, first=1)
    assert opt.param_groups[0]["decay_vectors"] is False


def test_named_groups_and_a_group_added_later(build):
    model = network()
    opt = build([{"params": list(model[0].named_parameters()), "lr": 0.5}])
    opt.add_param_group({"params": list(model[2].named_parameters()), "lr": 0.25})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.25]
    train(model, opt, 1)
    assert all(opt.state[p]["step"] == 1 for p in model.parameters())
    with pytest.raises(ValueError, match="lr"):
        extra = [("extra", nn.Parameter(torch.ones(2)))]
        opt.add_param_group({"params": extra, "lr": -1.0})
    assert len(opt.param_groups) == 2


def test_a_scheduler_drives_the_rate(build):
    model = network()
    opt = build(model, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1.0 if t == 0 else 0.0)
    train(model, opt, 1)
    scheduler.step()
    before = values(model)
    train(model, opt, 1, first=1)
    assert not any(moved(before, values(model)))


def test_an_unknown_form_of_decay_is_refused(build):
    with pytest.raises(ValueError, match=r"decay must be one of .* is 'adamw'"):
        build([nn.Parameter(torch.ones(2))], decay="adamw")


@pytest.mark.parametrize("decay", ["pylo", "decoupled", "foo"])
def test_a_form_of_decay_in_a_group_is_refused(build, decay):
    group = {"params": [nn.Parameter(torch.ones(2))], "decay": decay}
    refusal = f"^decay = '{decay}' in a parameter group: .* give the optimizer decay="
    with pytest.raises(ValueError, match=refusal):
        build([group])
    opt = build([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=refusal):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"weight_decay": -0.1},
        {"weight_decay": "0.1"},
        {"lr": None},
    ],
    ids=str,
)
def test_bad_hyperparameters_are_refused_with_their_value(build, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .* is {value!r}$"):
        build([nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize("value", [float("nan"), -0.1, "0.1"])
def test_a_bad_weight_decay_is_refused_when_loading_and_stepping(build, value):
    param = nn.Parameter(torch.ones(2, 3))
    param.grad = torch.ones_like(param)
    opt = build([param])
    saved = opt.state_dict()
    saved["param_groups"][0]["weight_decay"] = value
    refusal = f"weight_decay must be .* is {value!r}$"
    with pytest.raises(ValueError, match=refusal):
        opt.load_state_dict(saved)
    assert opt.param_groups[0]["weight_decay"] == 0.0
    opt.param_groups[0]["weight_decay"] = value
    with pytest.raises(ValueError, match=refusal):
        opt.step()
    assert torch.equal(param, torch.ones(2, 3))


def test_the_rate_may_be_a_tensor(build):
    ends = []
    for lr in (0.5, torch.tensor(0.5)):
        param = nn.Parameter(torch.ones(2, 3))
        param.grad = torch.ones_like(param)
        build([param], lr=lr).step()
        ends.append(param.detach())
    assert torch.equal(*ends)


def test_complex_integer_and_sparse_parameters_are_refused(build):
    sparse = torch.eye(2).to_sparse().requires_grad_()
    for param in (torch.ones(2, dtype=torch.complex64), torch.ones(2).int(), sparse):
        with pytest.raises(ValueError, match=r"layer\.weight of shape") as info:
            build([("layer.weight", param)])
        assert "\n" not in str(info.value)


def test_a_sparse_gradient_is_refused_before_anything_moves(build):
    dense, embed = nn.Parameter(torch.ones(2)), nn.Embedding(5, 3, sparse=True)
    opt = build([("dense", dense), ("embed.weight", embed.weight)])
    dense.grad = torch.ones(2)
    embed(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"embed\.weight .* sparse gradient"):
        opt.step()
    assert torch.equal(dense, torch.ones(2)) and not opt.state


def test_weights_that_do_not_fit_the_rule_are_refused(random_weights):
    weights = random_weights(SmallFC(hidden_size=16))
    with pytest.raises(ValueError, match=r"network.input.weight .* \(16, 39\)"):
        LearnedOptimizer([nn.Parameter(torch.ones(2))], RULE, weights)


def test_the_graph_and_requires_grad_survive(build):
    model = network()
    opt = build(model)
    train(model, opt, 2)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize(
    ("saved", "other"), [("pylo", "decoupled"), ("decoupled", "pylo")]
)
def test_a_state_of_another_form_of_decay_is_refused(build, saved, other):
    param = nn.Parameter(torch.ones(2))
    state = build([param], decay=saved).state_dict()
    with pytest.raises(ValueError, match=f"decay = '{saved}', the optimizer '{other}'"):
        build([param], decay=other).load_state_dict(state)
    again = build([param], decay=saved)
    again.load_state_dict(state)
    assert again.state_dict() == state and "decay" not in again.param_groups[0]


def test_a_state_older_than_the_forms_of_decay_is_of_pylo_s(build):
    param = nn.Parameter(torch.ones(2))

    def old(weight_decay):
        state = build([param], weight_decay=weight_decay).state_dict()
        del state["param_groups"][0]["decay"], state["param_groups"][0]["decay_vectors"]
        return state

    with pytest.raises(ValueError, match=r"weight_decay = 0\.1 .* with decay='pylo'"):
        build([param]).load_state_dict(old(0.1))
    build([param]).load_state_dict(old(0.0))
    build([param], decay="pylo").load_state_dict(old(0.1))


def test_two_parameters_of_one_name_are_refused_where_names_count(random_weights):
    pairs = [pair for n in (4, 2) for pair in nn.Linear(n, n).named_parameters()]
    weights = random_weights(RULE)
    LearnedOptimizer(pairs, RULE, weights, base=None)
    for options in (
        {"base": {"weight": (2, 2), "bias": (2,)}},
        {"base": None, "layouts": {"weight": "embedding"}},
    ):
        with pytest.raises(ValueError, match="two parameters are called 'weight'"):
            LearnedOptimizer(pairs, RULE, weights, **options)
