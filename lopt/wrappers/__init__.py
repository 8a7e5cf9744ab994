"""What goes around an optimizer, learned or not, and is one again.

Each wrapper is a frozen dataclass whose field `inner` is the wrapped optimizer. Its θ
is the inner one's, so a wrapped optimizer is meta-trained and evaluated as the plain
one is. All pass further arguments of `update` on (`loss` among them).

**Order.** Wrappers nest, and the outer one meets the gradient first and the step last.
From the outside in, the usual order is

    AccumulatedGradients(          averages gradients and losses first
      ClippedGradients(            then clips the average
        ScheduledSteps(            then multiplies step and decay by the rate
          WeightDecay(             then decays
            RoleFallback(rule)))))

so that a parameter p moves to p − rate·(step + decay·p). With `WeightDecay` outside of
`ScheduledSteps` the decay would not follow the rate; with `RoleFallback` outside of
all, the wrappers would concern the inner rule alone. `StochasticBfloat16` and
`Bfloat16Features` may stand anywhere: they concern what is inside of them.
"""

from lopt.wrappers.bfloat16 import (
    Bfloat16Features,
    StochasticBfloat16,
    round_stochastically,
)
from lopt.wrappers.gradients import AccumulatedGradients, ClippedGradients
from lopt.wrappers.roles import RoleFallback
from lopt.wrappers.steps import ScheduledSteps, WeightDecay

__all__ = [
    "AccumulatedGradients",
    "Bfloat16Features",
    "ClippedGradients",
    "RoleFallback",
    "ScheduledSteps",
    "StochasticBfloat16",
    "WeightDecay",
    "round_stochastically",
]
