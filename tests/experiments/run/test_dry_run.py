"""A dry run says what the run would be, to the byte, and does nothing."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest

from evaluation.cost import flop_per_update, tree_bytes
from experiments import train
from experiments.command_line import InputError
from experiments.presets import configs
from experiments.run import dry_run
from lopt.learned.learnable import LearnableAdam, LearnableSGD
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.forms import Execution
from lopt.wrappers import Bfloat16Features
from metatrain.estimators.backpropagation import Backpropagation
from metatrain.estimators.pes import PES
from metatrain.truncation import EpisodeLengths
from parametrization import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.groups import Group, TaskDistribution
from tasks.models.mlp import MLP
from tasks.synthetic.quadratics import Quadratic

ESTIMATOR = PES(num_pairs=3, chunk=3, truncation=5, lengths=EpisodeLengths(5, 10))
WIDE = ImageClassification(
    MLP(widths=(64, 64), base_width=16, rules=ADAM_LIKE), batch_size=32
)
TINY = dataclasses.replace(
    configs.QUICKSTART,
    task=TaskDistribution(
        (Group("wide", WIDE, 3.0), Group("bowl", Quadratic(dimension=4), 1.0)), "one"
    ),
    lopt=LearnableAdam(rules=ADAM_LIKE),
    estimator=ESTIMATOR,
    num_steps=40,
    validation=configs.Validation(every=15, num_steps=10, num_seeds=2),
)


@pytest.fixture(scope="module")
def text():
    """The report, on a machine that does 10⁹ FLOP/s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "product_rate", lambda: 1e9)
        return dry_run.report(TINY, "tiny")


def figures(pattern, text):
    found = re.search(pattern, text)
    assert found, text
    return [
        float(n.replace(",", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[p or ""]
        for n, p in re.findall(r"([\d.,]*\d)(?: ([kMG]))?", " ".join(found.groups()))
    ]


def test_the_table_has_multipliers_and_what_parameters_start_from(text):
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "->" in line}
    kind, shape, base, ratio, step, forward, start = rows["hidden_1/kernel"][-7:]
    assert (kind, shape, base) == ("hidden", "64×64", "16×16")
    assert (ratio, step, forward) == ("4", "0.25", "–")
    assert float(start) == pytest.approx(1 / 8, rel=0.1)
    assert rows["readout/kernel"][-4:] == ["4", "1", "0.25", "0"]
    assert "weight 3, nothing varies" in text and "bowl" in text
    count = 64 * 64 * 2 + 64 * 10 + 64 * 2 + 10
    assert f"{count:,} parameters in 6 tensors" in text


def test_memory_is_that_of_the_state(text):
    training = TINY.build()
    state = training.init()
    assert "θ of LearnableAdam: 4 numbers in 4 parts" in text
    sizes = [tree_bytes(its) for its in state.estimator_states]
    for name, expected in zip(("wide", "bowl"), sizes, strict=True):
        (found,) = figures(rf"  {name}: estimator (.*?)B \(6 particles\)", text)
        assert found == pytest.approx(expected, rel=5e-3)
    (total,) = figures(r"memory: (.*?)B of state", text)
    assert total == pytest.approx(tree_bytes(state), rel=5e-3)
    theta, average, outer = figures(
        r"  θ (.*?)B, its running average (.*?)B, outer optimizer (.*?)B", text
    )
    assert (theta, average) == (16, 16)
    assert outer == tree_bytes(state.outer_opt_state)
    data = tree_bytes(Digits().load())
    assert figures(r"wide: .*, data (.*?)B", text)[0] == pytest.approx(data, rel=5e-3)


def test_work_and_hours_follow_from_the_flop_of_the_groups(text):
    wide, bowl = (
        figures(r"inner step: (.*?)FLOP", part)[0] for part in text.split("\nbowl")
    )
    # Forward 2·B·P, backward twice that but for the gradient of the images.
    products = 32 * 2 * (3 * (64 * 64 * 2 + 64 * 10) - 64 * 64)
    assert products < wide < 1.15 * products
    assert bowl < 1000
    per_step = 30 * (0.75 * wide + 0.25 * bowl)  # one group a step, drawn 3 to 1
    inner, step, total, steps = figures(
        r"work: (.*?) inner steps and (.*?)FLOP an .*? step, (.*?)FLOP in (.*?) outer",
        text,
    )
    assert (inner, steps) == (30, 40)
    assert step == pytest.approx(per_step, rel=1e-2)
    assert total == pytest.approx(40 * per_step, rel=1e-2)
    # Three validations (steps 15, 30, 40) of 2 seeds and 10 steps on two groups.
    assert "another 10.0% of the inner steps" in text
    low, high = figures(r"expected: (.*?) s \(.*? to (.*?) s \(", text)
    assert low == pytest.approx(total / 0.5e9, rel=0.06)  # two digits are shown
    assert high == pytest.approx(total / 0.05e9, rel=0.06)
    assert "0.05 to 0.5 of the rate of a 2048³ float32 product" in text
    assert "1 GFLOP/s here and now (cpu)" in text


def test_flop_of_an_update_grow_as_the_network_of_the_optimizer():
    task = dataclasses.replace(WIDE, model=MLP(widths=(256,), base_width=16))
    params = 64 * 256 + 256 * 10
    small, large = (
        flop_per_update(task, SmallFC(hidden_size=h, rules=ADAM_LIKE))[0] / params
        for h in (32, 64)
    )
    # Per parameter two FLOP for each weight of the layers behind the first, and some of
    # the first, whose inputs are partly of rows and columns.
    grown = 2 * (64**2 - 32**2 + 2 * 32)
    assert grown + 2 * 16 * 32 < large - small < grown + 2 * 39 * 32
    plain, source = flop_per_update(task, LearnableSGD())
    # A product with the learning rate, of weights and biases.
    assert 0 <= plain - (params + 256 + 10) <= 10 and source == "XLA"


def test_another_split_and_the_way_back_through_an_unroll_are_counted():
    objective = dataclasses.replace(TINY.objective, split="inner_valid")
    one = dataclasses.replace(TINY, task=WIDE)
    other = dataclasses.replace(one, objective=objective)
    back = Backpropagation(num_particles=6, truncation=5, chunk=6)
    work = [
        dry_run.group_work(
            config,
            config.build(),
            [dry_run.describe(e) for e in dry_run.entries_of(config.distribution)],
        )[0]
        for config in (one, other, dataclasses.replace(one, estimator=back))
    ]
    assert work[2].flop == pytest.approx(4 * work[0].flop)
    assert work[2].inner_steps == 30
    assert work[1].task_flop == pytest.approx(4 / 3 * work[0].task_flop)
    assert work[0].inner_steps == 30 and work[0].update_flop == work[1].update_flop


def test_the_command_writes_nothing_and_compiles_no_outer_step(
    tmp_path, monkeypatch, capsys
):
    def never(*arguments):
        raise AssertionError("a dry run trains")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "product_rate", lambda: 1e9)
    monkeypatch.setattr(train, "train", never)
    line = ["train", "quadratic", "--lopt", "learnable_sgd", "--dry-run", "--seed", "3"]
    monkeypatch.setattr("sys.argv", line)
    train.main()
    assert "dry run of quadratic" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRAIN_DATA_DIR", str(tmp_path))
    config = configs.presets()["tfds_resnet"][1]()
    with pytest.raises(InputError) as error:
        dry_run.report(config, "tfds_resnet")
    assert "task: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lopt", "asked", "expected"),
    [
        (SmallFC(execution=Execution(precision="bfloat16")), "float32", "bfloat16"),
        (Bfloat16Features(SmallFC()), "float32", "bfloat16"),
        (SmallFC(), "bfloat16", "bfloat16"),
        (SmallFC(), "float32", "float32"),
        (LearnableSGD(), "float32", "float32 (no network)"),
    ],
)
def test_the_precision_is_that_of_the_network(monkeypatch, lopt, asked, expected):
    monkeypatch.setattr(dry_run, "product_rate", lambda: 1e9)
    config = dataclasses.replace(TINY, lopt=lopt, feature_precision=asked)
    lines = dry_run._time(config, config.build(), [])
    (line,) = (line for line in lines if line.startswith("precision of products"))
    assert line == f"precision of products: inner models float32, features {expected}"


def test_the_rate_of_a_product_is_that_of_its_flop(monkeypatch):
    """Checked with a clock that gives every product an eighth of a second."""
    from experiments.run import environment

    ticks = iter(np.arange(0, 100, 0.125))
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(ticks))
    assert environment.product_rate(0.5, side=16) == 2 * 16**3 / 0.125
    assert next(ticks) == 1.0  # four products, begun and ended
    assert jax.default_backend() == "cpu"
