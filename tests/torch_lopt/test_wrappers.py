"""Weight decay and schedules of a rule: factors, the run's length, checkpoints."""

import copy
import dataclasses
import io
import json
import pickle
import warnings

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from torch_lopt import (
    LearnedOptimizer,
    ScheduledSteps,
    SmallFC,
    WeightDecay,
    load_artifact,
)
from torch_lopt.schedules import (
    Constant,
    InfiniteSchedule,
    WarmupCosine,
    WarmupStableDecay,
    level,
)
from torch_lopt.wrappers import Factors, factors, unwrapped

RULE = SmallFC(hidden_size=4, hidden_layers=1, step_mult=0.01)
SCHEDULES = {
    "constant": "constant",
    "cosine": "cosine",
    "Constant": Constant(warmup=3, unit="steps"),
    "WarmupCosine": WarmupCosine(warmup=0.25),
    "WarmupStableDecay": WarmupStableDecay(warmup=0.25, decay=0.5, shape="sqrt"),
    "InfiniteSchedule": InfiniteSchedule(warmup=0.2, cooldown=0.4),
}
RUN = 8


@pytest.fixture
def build(random_weights):
    """Builds the optimizer of a rule over named parameters, with random weights."""

    def make(params, rule, **options):
        weights = random_weights(unwrapped(rule)[0])
        return LearnedOptimizer(params, rule, weights, **options)

    return make


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (3, 4), "conv": (2, 3, 2), "vector": (5,), "scalar": ()}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def train(params, opt, steps, first=0):
    """Steps with gradients that depend on the step's number alone."""
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(t)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=generator)
        opt.step()


def values(params):
    return {name: param.detach().clone() for name, param in params.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_a_rate_for_each_step(build, schedule):
    """The same bits as an `lr` that is set by hand, a power of two times the level."""
    schedule = SCHEDULES[schedule]
    ours, theirs = parameters(), parameters()
    rule = ScheduledSteps(RULE, 0.5, schedule)
    opt = build(ours.items(), rule, num_steps=RUN)
    by_hand = build(theirs.items(), RULE)
    for step in range(RUN):
        train(ours, opt, 1, first=step)
        # The nearest number of float32, in which JAX keeps rates.
        by_hand.param_groups[0]["lr"] = torch.tensor(0.5 * level(schedule, step, RUN))
        train(theirs, by_hand, 1, first=step)
    assert_same(values(ours), values(theirs))


def test_only_the_order_of_nesting_decides_what_the_rate_multiplies():
    rate = ScheduledSteps(RULE, 0.5, Constant(warmup=4, unit="steps"))
    inside = dataclasses.replace(rate, inner=WeightDecay(RULE, 0.25))
    twice = WeightDecay(ScheduledSteps(inside, 2.0), 0.125)
    cases = {
        WeightDecay(rate, 0.25): Factors(0.25, 0.25),
        inside: Factors(0.25, 0.0625),
        twice: Factors(0.5, 0.125 + 0.125),
        RULE: Factors(1.0, 0.0),
    }
    for rule, want in cases.items():
        inner, wrappers = unwrapped(rule)
        assert inner == RULE
        assert factors(wrappers, 2, 1) == want


def test_only_matrices_decay(build):
    params = parameters()
    rule = WeightDecay(dataclasses.replace(RULE, step_mult=1e-30), 0.25)
    # A group's own weight_decay concerns vectors; the artifact's does not.
    group = {"params": list(params.items()), "weight_decay": 0.5}
    before = values(params)
    train(params, build([group], rule), 1)
    for name, param in params.items():
        kept = 0.25 if param.ndim >= 2 else 0.5
        torch.testing.assert_close(param.detach(), kept * before[name])


def test_with_pylos_decay_the_artifact_s_stays_decoupled(build):
    rule = WeightDecay(dataclasses.replace(RULE, step_mult=1e-30), 0.25)
    params = parameters()
    before = values(params)["matrix"]
    train(params, build(params.items(), rule, weight_decay=0.5, decay="pylo"), 1)
    torch.testing.assert_close(params["matrix"].detach(), 0.75 * 0.5 * before)


def test_a_scheduler_of_torch_multiplies_on_top(build):
    ours, theirs = parameters(), parameters()
    decayed = WeightDecay(RULE, 0.25)
    opt = build(ours.items(), ScheduledSteps(decayed, 0.5))
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    by_hand = build(theirs.items(), decayed)
    for step in range(3):
        train(ours, opt, 1, first=step)
        scheduler.step()
        by_hand.param_groups[0]["lr"] = 0.5 * 0.5**step
        train(theirs, by_hand, 1, first=step)
    assert_same(values(ours), values(theirs))


COPIES = {
    "state_dict": None,
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_run_that_is_continued_is_the_same_run(build, kind):
    rule = ScheduledSteps(WeightDecay(RULE, 0.1), schedule="cosine")
    straight = parameters()
    opt = build(straight.items(), rule, num_steps=RUN)
    train(straight, opt, 3)
    if COPIES[kind] is None:
        file = io.BytesIO()
        torch.save({"params": values(straight), "opt": opt.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = {name: nn.Parameter(value) for name, value in saved["params"].items()}
        again = build(resumed.items(), rule, num_steps=RUN)
        again.load_state_dict(saved["opt"])
        assert not {"updates", "num_steps"} & again.param_groups[0].keys()
    else:
        resumed, again = COPIES[kind]((straight, opt))
    train(straight, opt, RUN - 3, first=3)
    train(resumed, again, RUN - 3, first=3)
    assert_same(values(straight), values(resumed))
    assert again.state_dict()["param_groups"][0]["updates"] == RUN


def test_updates_count_for_tensors_that_join_late(build):
    """The schedule is the run's: at update 2 of 2 its level is 1/2, not 1."""
    rule = WeightDecay(dataclasses.replace(RULE, step_mult=1e-30), 0.5)
    rule = ScheduledSteps(rule, schedule="cosine")
    early, late = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(1, 2))
    opt = build([("early", early)], rule, num_steps=2)
    early.grad = torch.ones(1, 2)
    opt.step()
    opt.add_param_group({"params": [("late", late)]})
    early.grad, late.grad = None, torch.ones(1, 2)
    opt.step()
    torch.testing.assert_close(early.detach(), torch.full((1, 2), 0.5))
    torch.testing.assert_close(late.detach(), torch.full((1, 2), 0.75))


def test_beyond_the_run_the_level_stays_and_one_warning_says_so(build):
    rule = dataclasses.replace(RULE, step_mult=1e-30)
    rule = ScheduledSteps(WeightDecay(rule, 0.5), schedule=WarmupCosine(0, final=0.5))
    params = parameters()
    opt = build(params.items(), rule, num_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(params, opt, 2)
    before = values(params)["matrix"]
    with pytest.warns(UserWarning, match="update 3 is beyond num_steps = 2") as seen:
        train(params, opt, 3)
    assert len(seen) == 1 and seen[0].filename == __file__
    torch.testing.assert_close(params["matrix"].detach(), 0.75**3 * before)


NEEDS_NONE = [
    RULE,
    WeightDecay(RULE),
    ScheduledSteps(RULE, 0.1),
    ScheduledSteps(RULE, schedule=Constant()),
    ScheduledSteps(RULE, schedule=Constant(warmup=9, unit="steps")),
    ScheduledSteps(RULE, schedule=InfiniteSchedule(1, 2, 3, 4, unit="steps")),
]
NEEDS_LENGTH = [
    ScheduledSteps(RULE, schedule="cosine"),
    WeightDecay(ScheduledSteps(RULE, schedule="cosine")),
    ScheduledSteps(RULE, schedule=Constant(warmup=0.1)),
    ScheduledSteps(RULE, schedule=WarmupCosine(warmup=9, unit="steps")),
    ScheduledSteps(RULE, schedule=WarmupStableDecay(9, 9, unit="steps")),
    ScheduledSteps(RULE, schedule=InfiniteSchedule()),
]


@pytest.mark.parametrize("rule", NEEDS_NONE, ids=str)
def test_where_nothing_needs_the_length_it_is_accepted_and_unused(build, rule):
    ends = []
    for options in ({}, {"num_steps": 1}, {"num_steps": 10}):
        params = parameters()
        opt = build(params.items(), rule, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(params, opt, 2)
        ends.append(values(params))
        build(params.items(), rule, num_steps=7).load_state_dict(opt.state_dict())
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


@pytest.mark.parametrize("rule", NEEDS_LENGTH, ids=str)
def test_a_schedule_over_the_run_needs_its_length(build, rule):
    with pytest.raises(ValueError, match="give num_steps= the number") as info:
        build(parameters().items(), rule)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("rule", [RULE, NEEDS_LENGTH[0]], ids=["no", "schedule"])
@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "8", float("nan")], ids=repr)
def test_a_length_is_a_whole_number(build, rule, value):
    with pytest.raises(ValueError, match=f"num_steps must be .* is {value!r}$"):
        build(parameters().items(), rule, num_steps=value)


def test_a_state_of_another_length_is_refused_by_both_lengths(build):
    params, rule = parameters(), NEEDS_LENGTH[0]
    saved = build(params.items(), rule, num_steps=8).state_dict()
    opt = build(params.items(), rule, num_steps=9)
    train(params, opt, 2)
    with pytest.raises(ValueError, match="num_steps = 8, the optimizer 9: build"):
        opt.load_state_dict(saved)
    assert opt.state_dict()["param_groups"][0]["updates"] == 2
    bare = build(params.items(), RULE).state_dict()
    with pytest.raises(ValueError, match="num_steps = None, the optimizer 9: build"):
        opt.load_state_dict(bare)
    saved["param_groups"][0] |= {"updates": -1, "num_steps": 9}
    with pytest.raises(ValueError, match=r"updates .* must be a whole number"):
        opt.load_state_dict(saved)


def test_a_state_from_before_schedules_is_read_where_there_is_none(build):
    params = parameters()
    opt = build(params.items(), RULE)
    train(params, opt, 2)
    old = opt.state_dict()
    for name in ("updates", "num_steps"):
        del old["param_groups"][0][name]
    again = build(params.items(), WeightDecay(RULE))
    again.load_state_dict(old)
    assert again.state_dict()["param_groups"][0]["updates"] == 2
    with pytest.raises(ValueError, match="does not say how many updates") as info:
        build(params.items(), NEEDS_LENGTH[0], num_steps=8).load_state_dict(old)
    assert "\n" not in str(info.value)


def test_the_length_in_a_group_is_refused(build):
    group = {"params": [nn.Parameter(torch.ones(2))], "num_steps": 3}
    with pytest.raises(ValueError, match=r"^num_steps = 3 in a parameter group"):
        build([group], RULE)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: WeightDecay(RULE, -0.1), "weight_decay .* -0.1"),
        (lambda: ScheduledSteps(RULE, 0.0), "learning_rate .* 0.0"),
        (lambda: ScheduledSteps(RULE, 1.0, "linear"), "schedule .* 'linear'"),
        (lambda: ScheduledSteps("SmallFC"), "wraps a SmallFC, .* not 'SmallFC'"),
    ],
)
def test_wrappers_refuse_wrong_fields(make, word):
    with pytest.raises(ValueError, match=word):
        make()


jax = pytest.importorskip("jax")

import lopt
import lopt.schedules
import lopt.wrappers
from parametrization import ADAM_LIKE


def saved_by_jax(folder, optimizer):
    theta = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 9,
        optimizer.init(jax.random.key(0)),
    )
    lopt.Artifact(optimizer, theta, {"width": 32}).save(folder)
    return theta


INNER = lopt.SmallFC(
    hidden_size=6,
    hidden_layers=3,
    step_mult=0.03,
    momentum_decays=(0.5, 0.9),
    second_moment_decay=0.99,
    factored_decays=(0.8, 0.95),
    epsilons=lopt.WIDTH_SAFE,
    rules=ADAM_LIKE,
)


@pytest.mark.parametrize("factored_axes", ["matrix", "tensor"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_jax_saves_is_what_torch_loads(tmp_path, schedule, factored_axes):
    ours = SCHEDULES[schedule]
    theirs = ours
    if not isinstance(ours, str):
        kind = getattr(lopt.schedules, schedule)
        theirs = kind(**dataclasses.asdict(ours))
    inner = dataclasses.replace(INNER, factored_axes=factored_axes)
    optimizer = lopt.wrappers.WeightDecay(
        lopt.wrappers.ScheduledSteps(inner, 0.3, theirs), 0.2
    )
    theta = saved_by_jax(tmp_path / "artifact", optimizer)
    rule, weights = load_artifact(tmp_path / "artifact")
    innermost, _ = unwrapped(rule)
    assert rule == WeightDecay(ScheduledSteps(innermost, 0.3, ours), 0.2)
    assert innermost.momentum_offsets == tuple(theta["momentum_offsets"].tolist())
    assert innermost.rms_offsets == tuple(theta["second_moment_offsets"].tolist())
    assert innermost.adafactor_offsets == tuple(theta["factored_offsets"].tolist())

    # A small_fc alone goes another way, by the third schema.
    lopt.Artifact(inner, theta, {"width": 32}).save(tmp_path / "alone")
    alone, alone_weights = load_artifact(tmp_path / "alone")
    assert alone == innermost
    assert_same(alone_weights, weights)


def test_fields_that_are_no_property_of_the_weights_are_ignored(tmp_path, sums):
    folder = tmp_path / "artifact"
    saved_by_jax(folder, lopt.wrappers.WeightDecay(INNER))
    before = load_artifact(folder).rule
    config = json.loads((folder / "config.json").read_text())
    config["optimizer"]["inner"] |= {
        "output_scale": 0.0,
        "initial_step": 0.5,
        "execution": {"form": "plain", "precision": "bfloat16"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    sums(folder)
    assert load_artifact(folder).rule == before
    config["optimizer"]["inner"]["initial_step"] = "0.5"
    (folder / "config.json").write_text(json.dumps(config))
    sums(folder)
    with pytest.raises(ValueError, match=r"initial_step must be .* is '0\.5'"):
        load_artifact(folder)


REFUSED = {
    "MLPLOpt": lopt.MLPLOpt(hidden_size=4),
    "ClippedGradients": lopt.wrappers.ClippedGradients(INNER),
    "inside": lopt.wrappers.WeightDecay(lopt.wrappers.ClippedGradients(INNER)),
    "kinds": lopt.wrappers.WeightDecay(INNER, kinds=("hidden", "vector")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_torch_cannot_run_is_refused_by_its_name(tmp_path, case):
    folder = tmp_path / "artifact"
    saved_by_jax(folder, REFUSED[case])
    with pytest.raises(ValueError) as info:
        load_artifact(folder)
    message = str(info.value)
    named = {
        "inside": "optimizer.inner.kind is 'ClippedGradients'",
        "kinds": "'vector'",
    }
    assert named.get(case, f"optimizer.kind is {case!r}") in message
    assert str(folder / "config.json") in message and "\n" not in message
    assert "run it in JAX, by Artifact.as_optax" in message
