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
all, the wrappers would concern the inner rule alone. `StochasticBfloat16` may stand
anywhere: what is inside of it keeps its state in bfloat16.
"""

from lopt.wrappers.bfloat16 import StochasticBfloat16, round_stochastically
from lopt.wrappers.gradients import AccumulatedGradients, ClippedGradients
from lopt.wrappers.roles import RoleFallback
from lopt.wrappers.steps import ScheduledSteps, WeightDecay

__all__ = [
    "AccumulatedGradients",
    "ClippedGradients",
    "RoleFallback",
    "ScheduledSteps",
    "StochasticBfloat16",
    "WeightDecay",
    "round_stochastically",
]
