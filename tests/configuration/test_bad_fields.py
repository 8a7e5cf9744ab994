"""Every field of every configuration, given values of every other kind.

Either a value is fit, or one line names the field: nothing else comes out. And where
the type alone decides, it is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import types
import typing
from pathlib import Path

import pytest

from evaluation.tune import Grid
from experiments.convert import Convert
from experiments.coordinate_check import CoordinateConfig
from experiments.evaluate import Evaluate
from experiments.export import Export
from experiments.fleet import FleetOptions
from experiments.learning_rate_transfer import TransferConfig
from experiments.presets.configs import QUICKSTART
from experiments.tasks import Show
from lopt import Nominal, SmallFC
from lopt.wrappers import (
    AccumulatedGradients,
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)
from tasks import MLP, ImageClassification
from tasks.custom.function_task import FunctionTask
from tasks.data.embedded import Digits
from tasks.data.resized import Resized
from tasks.groups import Group, TaskDistribution
from tasks.language_modelling import LanguageModelling
from tasks.models.transformer import Transformer
from tasks.suites.cell import Cell, Suite

PACKAGES = ("lopt", "tasks", "metatrain", "evaluation", "experiments")
RULE, TASK = SmallFC(hidden_size=2), ImageClassification(MLP((4,), base_width=4))
GIVEN = {
    type(example): example
    for example in (
        QUICKSTART,
        *(wrap(RULE) for wrap in (AccumulatedGradients, Bfloat16Features)),
        *(wrap(RULE) for wrap in (ClippedGradients, RoleFallback, ScheduledSteps)),
        *(wrap(RULE) for wrap in (StochasticBfloat16, WeightDecay, Nominal)),
        Group("digits", TASK),
        LanguageModelling(Transformer(width=16, depth=1, base_width=16)),
        FunctionTask(lambda key, width=1: {}, lambda params, key, batch: 0.0),
        Cell("cell", "width", TASK, 10),
        Suite("suite", "one", tuple),
        Grid(-4, 4),
        Convert(Path("a"), Path("b")),
        CoordinateConfig(TASK),
        TransferConfig(TASK),
        Evaluate(Path("a")),
        Export(Path("a"), Path("b")),
        FleetOptions(Path("a")),
        Show("digits"),
        TaskDistribution((Group("digits", TASK),)),
        Resized(Digits(), 16),
        QUICKSTART.build(),
        QUICKSTART.build().groups[0],
        QUICKSTART.build().groups[0].problem,
    )
}
"""Examples of configurations that need arguments."""

VALUES = (
    *("x", "a\nb", b"x", None, True, -1, 0, 1, 10**30),
    *(-1.0, 0.0, 1.5, 1e-320, 1e300, math.nan, math.inf, -math.inf, 1j),
    *((), ("a",), (1, 2), ((1,),), [1.0], {}, Path("x"), object()),
)


def configurations():
    """Finds every class that `configuration` made, by name."""
    found = {}
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            for name, cls in vars(importlib.import_module(module.name)).items():
                made = getattr(cls, "__post_init__", None)
                ours = getattr(made, "__module__", None) == "configuration.fields"
                if inspect.isclass(cls) and ours and not inspect.isabstract(cls):
                    found[f"{cls.__module__}.{name}"] = cls
    return found


CONFIGURATIONS = configurations()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_wrong_value_is_fit_or_is_named(name):
    cls = CONFIGURATIONS[name]
    whole = GIVEN[cls] if cls in GIVEN else cls()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for value in VALUES:
            try:
                changed = dataclasses.replace(whole, **{field.name: value})
            except ValueError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 2000, text
                stem = field.name.rstrip("s").split("_")[0]
                assert stem in text, f"{field.name} = {value!r}: {text}"
            else:
                assert fits(value, hints[field.name]), f"{field.name} = {value!r}"
                kept = getattr(changed, field.name)
                assert kept is value or kept == value or kept == float(value)


def fits(value, hint):
    """Returns whether a plain annotation allows the value; others always do."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, inner) for inner in typing.get_args(hint))
    if hint is float:
        number = isinstance(value, float | int) and not isinstance(value, bool)
        return number and not math.isnan(value)
    if hint in (int, bool, str, types.NoneType):
        return type(value) is hint
    return True


def test_they_are_found():
    assert len(CONFIGURATIONS) > 90
    assert set(GIVEN) <= set(CONFIGURATIONS.values())
