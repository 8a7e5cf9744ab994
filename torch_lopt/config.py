"""Reads the configuration of an artifact, `config.json`, as a rule.

There are three schemas. The first and the third are of a small_fc alone, with the
offsets of its decays beside its fields. The second is the general one of the JAX
library: every object says its class as `kind`, fields that JSON lacks have the value of
objects that are older than the field, and the offsets are among the tensors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_lopt import schedules
from torch_lopt.rule import TIME_SCALES, Epsilons, SmallFC
from torch_lopt.schedules import Schedule
from torch_lopt.wrappers import DECAYING, Rule, ScheduledSteps, WeightDecay

TENSOR_SCHEMA, GENERAL_SCHEMA, MATRIX_SCHEMA = 1, 2, 3
SCHEMAS = (TENSOR_SCHEMA, GENERAL_SCHEMA, MATRIX_SCHEMA)
"""Of the first and the third only the latter names `factored_axes`, "tensor" before."""


def rule_from(config: Any) -> Rule:
    """Returns the rule that a configuration describes.

    In the general schema its offsets are 0: they are found among the tensors.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if it is not understood.
    """
    version = version_of(config)
    if version == GENERAL_SCHEMA:
        _check_base(config)
        return _general(config["optimizer"], "optimizer")
    return _small_fc(config, version)


def version_of(config: Any) -> int:
    """Returns the schema of a configuration."""
    version = _integer(_block(config, "the file"), "schema_version")
    if version not in SCHEMAS:
        raise ValueError(
            f"schema_version {version} is not one of {SCHEMAS}, which this version of "
            "torch_lopt reads"
        )
    return version


def _small_fc(config: Mapping[str, Any], version: int) -> SmallFC:
    """Returns the rule of the first and third schema."""
    block = _block(config["optimizer"], "optimizer")
    if block["class"] != "SmallFC":
        raise ValueError(f"unknown optimizer class {block['class']!r}, not 'SmallFC'")
    axes = block["factored_axes"] if version == MATRIX_SCHEMA else "tensor"
    if block.get("factored_axes", axes) != axes:
        raise ValueError(
            f"factored_axes is {block['factored_axes']!r}, but with schema_version "
            f"{version} must be absent or {axes!r}: export the optimizer again"
        )
    decays = {
        f"{kind}_{what}": _numbers(block, f"{kind}_{what}")
        for kind in ("momentum", "rms", "adafactor")
        for what in ("decays", "offsets")
    }
    rule = SmallFC(
        hidden_size=_integer(block, "hidden_size"),
        hidden_layers=_integer(block, "hidden_layers"),
        step_mult=_number(block, "step_mult"),
        exp_mult=_number(block, "exp_mult"),
        epsilons=_epsilons(_block(block["epsilons"], "epsilons")),
        time_scales=_numbers(block, "time_scales"),
        rules=block["rules"],
        factored_axes=axes,
        largest_step=None,
        **decays,
    )
    _check_consistent(config, block, rule)
    return rule


def _check_consistent(
    config: Mapping[str, Any], block: Mapping[str, Any], rule: SmallFC
) -> None:
    """Checks the entries that the file holds twice."""
    if rule.time_scales != TIME_SCALES:
        raise ValueError("the time_scales are not those of this version")
    if block["features"] != list(rule.feature_names):
        raise ValueError("the features are not those of this version, in its order")
    outer = {
        "input_size": rule.input_size,
        "hidden_size": rule.hidden_size,
        "hidden_layers": rule.hidden_layers - 1,
    }
    for key, value in outer.items():
        if config[key] != value:
            raise ValueError(f"{key} is {config[key]}, but its optimizer needs {value}")

    _check_base({**config, "base": block["base"]})


def _check_base(config: Mapping[str, Any]) -> None:
    """Checks what only the JAX library uses."""
    _block(config["provenance"], "provenance")
    base = _block(config["base"], "base")
    for key in base:
        if _integer(base, key) < 1:
            raise ValueError(f"base.{key} must be >= 1, is {base[key]}")


def _general(block: Any, where: str) -> Rule:
    """Returns the rule of an object of the second schema."""
    readers: dict[str, Callable[[Mapping[str, Any], str], Rule]] = {
        "SmallFC": _general_small_fc,
        "WeightDecay": _weight_decay,
        "ScheduledSteps": _scheduled_steps,
    }
    kind = _block(block, where)["kind"]
    if not isinstance(kind, str) or kind not in readers:
        raise ValueError(
            f"{where}.kind is {kind!r:.80}, which torch_lopt cannot run (only SmallFC, "
            "alone or in ScheduledSteps and WeightDecay): run it in JAX, by "
            "Artifact.as_optax"
        )
    return readers[kind](block, where)


def _general_small_fc(block: Mapping[str, Any], where: str) -> SmallFC:
    sizes = ("hidden_size", "hidden_layers", "step_mult", "exp_mult")
    decays = ("momentum_decays", "second_moment_decay", "factored_decays")
    required = (*sizes, *decays, "output_scale", "epsilons", "rules")
    optional = ("execution", "initial_step", "factored_axes", "largest_step")
    _check_fields(block, where, required, optional)
    # No properties of trained weights: they are checked, and not used.
    for name, low in (("output_scale", -1e3), ("initial_step", 0.0)):
        value = _number({"initial_step": 0, **block}, name)
        if not low <= value <= 1e3:
            raise ValueError(f"{where}.{name} must be in [{low:g}, 1000], is {value}")
    _block(block.get("execution", {}), f"{where}.execution")
    momentum = _numbers(block, "momentum_decays")
    factored = _numbers(block, "factored_decays")
    unbounded = block.get("largest_step") is None
    return SmallFC(
        hidden_size=_integer(block, "hidden_size"),
        hidden_layers=_integer(block, "hidden_layers"),
        step_mult=_number(block, "step_mult"),
        exp_mult=_number(block, "exp_mult"),
        momentum_decays=momentum,
        rms_decays=(_number(block, "second_moment_decay"),),
        adafactor_decays=factored,
        momentum_offsets=(0.0,) * len(momentum),
        adafactor_offsets=(0.0,) * len(factored),
        epsilons=_epsilons(_block(block["epsilons"], f"{where}.epsilons")),
        rules=block["rules"],
        factored_axes=block.get("factored_axes", "tensor"),
        largest_step=None if unbounded else _number(block, "largest_step"),
    )


def _weight_decay(block: Mapping[str, Any], where: str) -> WeightDecay:
    _check_fields(block, where, ("inner", "weight_decay", "kinds"))
    kinds = block["kinds"]
    if not isinstance(kinds, list) or sorted(map(str, kinds)) != sorted(DECAYING):
        raise ValueError(
            f"{where}.kinds is {kinds!r:.80}, which torch_lopt cannot run: it decays "
            f"{list(DECAYING)}, all matrices; run it in JAX, by Artifact.as_optax"
        )
    inner = _general(block["inner"], f"{where}.inner")
    return WeightDecay(inner, _number(block, "weight_decay"))


def _scheduled_steps(block: Mapping[str, Any], where: str) -> ScheduledSteps:
    _check_fields(block, where, ("inner", "learning_rate", "schedule"))
    schedule = _schedule(block["schedule"], f"{where}.schedule")
    inner = _general(block["inner"], f"{where}.inner")
    return ScheduledSteps(inner, _number(block, "learning_rate"), schedule)


def _schedule(value: Any, where: str) -> Schedule:
    """Returns a schedule: a name, or phases as an object."""
    if not isinstance(value, dict):
        schedules.check_schedule(value)
        return value
    classes = {kind.__name__: kind for kind in schedules.SCHEDULES}
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(
            f"{where}.kind is {kind!r:.80}, must be one of {sorted(classes)}"
        )
    cls = classes[kind]
    names = [field.name for field in dataclasses.fields(cls)]
    _check_fields(value, where, names)
    fields: dict[str, Any] = {
        name: value[name] if name in ("shape", "unit") else _number(value, name)
        for name in names
    }
    return cls(**fields)


def _check_fields(
    block: Mapping[str, Any],
    where: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> None:
    """Refuses an object that lacks a field or has one that is not known."""
    if missing := [name for name in required if name not in block]:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown := sorted(block.keys() - {"kind", *required, *optional}):
        raise ValueError(f"{where}.{unknown[0]} is not a field of {block['kind']}")


def _epsilons(block: Mapping[str, Any]) -> Epsilons:
    names = [field.name for field in dataclasses.fields(Epsilons)]
    if unknown := sorted(set(block) - set(names)):
        raise ValueError(f"unknown epsilons {unknown}")
    return Epsilons(**{name: _number(block, name) for name in names})


def _block(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not a JSON object")
    return value


def _integer(block: Mapping[str, Any], key: str) -> int:
    value = block[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key} must be an integer, is {value!r}")
    return value


def _number(block: Mapping[str, Any], key: str) -> float:
    value = block[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} must be a number, is {value!r}")
    return float(value)


def _numbers(block: Mapping[str, Any], key: str) -> tuple[float, ...]:
    if not isinstance(block[key], list):
        raise TypeError(f"{key} must be a list of numbers, is {block[key]!r}")
    return tuple(_number({key: item}, key) for item in block[key])
