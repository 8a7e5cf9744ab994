"""The language of a parameter's role and width, shared by tasks and optimizers."""

from parametrization.axes import Axes as Axes
from parametrization.inference import infer_specs as infer_specs
from parametrization.inference import specs_table as specs_table
from parametrization.rules import ADAM_LIKE as ADAM_LIKE
from parametrization.rules import COMPLETEP as COMPLETEP
from parametrization.rules import COMPLETEP_SGD_LIKE as COMPLETEP_SGD_LIKE
from parametrization.rules import SGD_LIKE as SGD_LIKE
from parametrization.rules import STANDARD as STANDARD
from parametrization.rules import Rules as Rules
from parametrization.spec import Named as Named
from parametrization.spec import ParamSpec as ParamSpec
from parametrization.spec import named as named
from parametrization.spec import param_specs as param_specs
from parametrization.spec import unbox as unbox
