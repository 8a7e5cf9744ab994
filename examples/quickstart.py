# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Meta-train an optimizer, compare it with Adam, take it along
#
# A small network that turns gradients into updates is meta-trained with persistent
# evolution strategies on MLPs of width 32, in μP. Then it trains wider ones. The sizes
# below take about two minutes on two CPU cores; they show the steps, not what a learned
# optimizer can reach.
#
# The first cell installs the package where it is not. `SOURCE` says from where: a
# folder that holds a clone of the repository, or `git+https://…`.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."
if importlib.util.find_spec("metatrain") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %% tags=["parameters"]
NUM_STEPS = 200  # outer steps
NUM_PAIRS = 4  # antithetic pairs of particles
HORIZON = 200  # inner steps of the longest training run
WIDTHS = (32, 128)  # the first is that of meta-training
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2)  # of Adam
FOLDER = "learned_optimizer"

# %%
import jax
import matplotlib.pyplot as plt

from evaluation.run import evaluate
from lopt import Adam, Artifact, SmallFC
from metatrain import PES, EpisodeLengths, MetaTraining, OuterOptimizer
from parametrization import ADAM_LIKE
from tasks import MLP, Digits, ImageClassification

# %% [markdown]
# **What is optimized** is a task at one width; **what optimizes** has weights θ; the
# **estimator** says how a meta-gradient is made, here from windows of 20 inner steps;
# the **outer optimizer** moves θ.


# %%
def task_of(width: int) -> ImageClassification:
    """Digits of 8 × 8 pixels by an MLP with two hidden layers."""
    return ImageClassification(MLP(widths=(width, width), base_width=32), Digits())


task = task_of(WIDTHS[0])
lopt = SmallFC(hidden_size=8, step_mult=0.01, output_scale=0.0, rules=ADAM_LIKE)
estimator = PES(
    num_pairs=NUM_PAIRS,
    chunk=NUM_PAIRS,
    truncation=20,
    sigma=0.03,
    lengths=EpisodeLengths(minimum=20, maximum=HORIZON),
)
outer = OuterOptimizer(learning_rate=1e-2, warmup_steps=min(20, NUM_STEPS - 1))

# %%
training = MetaTraining.on(task, lopt, estimator, outer, NUM_STEPS)
state, data = training.init(), task.load_data()
meta_losses = []
for _ in range(NUM_STEPS):
    state, metrics = training.step(state, {0: data})
    meta_losses.append(float(metrics["meta_loss"]))
plt.plot(meta_losses)
plt.xlabel("outer step")
plt.ylabel("meta-loss")
plt.show()

# %% [markdown]
# **Does it help?** Adam is given the best of a few rates at every width, chosen on the
# seeds that are shown, which favours Adam. Where its loss is lower, the table says so.

# %%
rules = {"learned": (lopt, state.average)} | {
    f"Adam {rate:g}": (Adam(rate), Adam(rate).init(jax.random.key(0))) for rate in RATES
}
for width in WIDTHS:
    found = {
        name: evaluate(
            task_of(width), rule, theta, HORIZON, seeds=SEEDS, dataset=data
        ).mean_loss.mean()
        for name, (rule, theta) in rules.items()
    }
    learned = found.pop("learned")
    best = min(found, key=lambda name: found[name])
    print(f"width {width}: learned {learned:.3f}, {best} {found[best]:.3f}")

# %% [markdown]
# **Take it along**: a folder with the rule, its weights and its origin. In JAX it is an
# optax transformation (`Artifact.load(folder).as_optax(specs, num_steps)`), in PyTorch
# a `torch.optim.Optimizer` (`LearnedOptimizer.from_pretrained(model, folder, …)`).

# %%
provenance = {"made_by": "examples/quickstart.ipynb", "outer_steps": NUM_STEPS}
Artifact(lopt, state.average, task.model.base_sizes, provenance).save(
    FOLDER, replace=True
)
