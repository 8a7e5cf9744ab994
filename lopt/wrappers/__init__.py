"""Wrappers around an optimizer, learned or not, which are optimizers again.

The field `inner` is the wrapped optimizer. θ is the inner one's, so a wrapped optimizer
is meta-trained and evaluated like the plain one. Further arguments of `update` (`loss`
or `value` among them) are passed on.

**Order.** The outer wrapper meets the gradient first and the step last. From the
outside in, the usual order is

    AccumulatedGradients(          averages gradients and losses first
      ClippedGradients(            then clips the average
        ScheduledSteps(            then multiplies step and decay by the rate
          WeightDecay(             then decays
            RoleFallback(rule)))))

so that a parameter p moves to p − rate·(step + decay·p). With `WeightDecay` outside
`ScheduledSteps` the decay would not follow the rate; with `RoleFallback` outermost, the
wrappers would concern the inner rule alone. `StochasticBfloat16` and `Bfloat16Features`
may stand anywhere.
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
