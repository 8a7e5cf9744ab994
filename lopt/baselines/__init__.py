"""Hand-designed optimizers behind the interface of learned ones.

A baseline's θ is its learning rate: it runs in the same inner loop as a learned
optimizer, and a grid of learning rates is one vmapped program. Updates are optax's,
weight decay of all parameters included; μP is one more link of the chain.
"""

from typing import TypeAlias

from lopt.baselines.adafactor import Adafactor
from lopt.baselines.adam import Adam
from lopt.baselines.links import in_float32, scale_by_specs, unscale_gradients
from lopt.baselines.lion import Lion
from lopt.baselines.muon import Muon
from lopt.baselines.prodigy import Prodigy
from lopt.baselines.schedule_free import ScheduleFreeAdamW, evaluation_params
from lopt.baselines.sgd import SGD
from lopt.schedules import Schedule, learning_rate_schedule

Baseline: TypeAlias = Adam | SGD | Lion | Muon | Adafactor | ScheduleFreeAdamW | Prodigy

__all__ = [
    "SGD",
    "Adafactor",
    "Adam",
    "Baseline",
    "Lion",
    "Muon",
    "Prodigy",
    "Schedule",
    "ScheduleFreeAdamW",
    "evaluation_params",
    "in_float32",
    "learning_rate_schedule",
    "scale_by_specs",
    "unscale_gradients",
]
