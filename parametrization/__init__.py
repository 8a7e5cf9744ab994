"""The language of a parameter's role and width, shared by tasks and optimizers."""

from parametrization.axes import Axes
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
    "Named",
    "ParamSpec",
    "Rules",
    "infer_specs",
    "named",
    "param_specs",
    "unbox",
]
