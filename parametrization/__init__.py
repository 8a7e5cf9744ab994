"""The language of a parameter's role and width, shared by tasks and optimizers."""

from parametrization.axes import Axes
from parametrization.coordinate_check import CoordinateCheck, coordinate_check
from parametrization.rules import (
    ADAM_LIKE,
    COMPLETEP,
    COMPLETEP_SGD_LIKE,
    SGD_LIKE,
    STANDARD,
    Rules,
)
from parametrization.spec import (
    Named,
    ParamSpec,
    infer_specs,
    named,
    param_specs,
    unbox,
)

__all__ = [
    "ADAM_LIKE",
    "COMPLETEP",
    "COMPLETEP_SGD_LIKE",
    "SGD_LIKE",
    "STANDARD",
    "Axes",
    "CoordinateCheck",
    "Named",
    "ParamSpec",
    "Rules",
    "coordinate_check",
    "infer_specs",
    "named",
    "param_specs",
    "unbox",
]
