"""Meta-trains a small learned optimizer and releases it, without a command line.

    python examples/meta_train.py

`experiments.train` does the same with checkpoints, records and validation.
"""

from __future__ import annotations

from pathlib import Path

import jax

from evaluation.run import evaluate
from lopt import Adam, Artifact, SmallFC
from lopt.release.registry import AnyLearned
from metatrain import PES, EpisodeLengths, MetaTraining, OuterOptimizer
from parametrization import ADAM_LIKE
from tasks import MLP, Digits, ImageClassification

# What optimizes: a per-parameter network with eight hidden units, in μP.
SMALL_FC = SmallFC(hidden_size=8, step_mult=0.01, output_scale=0.0, rules=ADAM_LIKE)


def main(
    folder: str | Path = "runs/example",
    lopt: AnyLearned = SMALL_FC,
    num_steps: int = 300,
    num_pairs: int = 4,
    longest_episode: int = 200,
) -> Artifact:
    """Meta-trains for `num_steps` outer steps.

    Args:
        folder: where the released optimizer goes; must not exist.
        lopt: the learned optimizer.
        num_steps: outer steps.
        num_pairs: antithetic pairs.
        longest_episode: inner steps of the longest training run.
    """
    # What is optimized: an MLP in μP on 8×8 images that ship with scikit-learn.
    task = ImageClassification(MLP(widths=(32, 32), base_width=32), Digits())

    # The meta-gradient: persistent evolution strategies over windows of 20 steps.
    estimator = PES(
        num_pairs=num_pairs,
        chunk=num_pairs,
        truncation=20,
        sigma=0.03,
        lengths=EpisodeLengths(minimum=20, maximum=longest_episode),
    )

    # What moves θ: Adam, with warm-up and a cosine.
    outer = OuterOptimizer(learning_rate=1e-2, warmup_steps=min(20, num_steps - 1))

    # The loop. An outer step advances every pair by one window and then moves θ.
    training = MetaTraining.on(task, lopt, estimator, outer, num_steps)
    state, data = training.init(), task.load_data()
    for step in range(1, num_steps + 1):
        state, metrics = training.step(state, {0: data})
        if step % 20 == 0 or step == num_steps:
            print(f"{step:5d}  meta-loss {float(metrics['meta_loss']):.3f}")

    # The running average of θ beside Adam: a fixed rate, not a tuned one.
    adam = Adam(1e-2)
    rules = {
        "learned": (lopt, state.average),
        "Adam": (adam, adam.init(jax.random.key(0))),
    }
    for name, (rule, theta) in rules.items():
        runs = evaluate(task, rule, theta, longest_episode, seeds=[0, 1], dataset=data)
        print(f"{name:>8}  mean training loss {runs.mean_loss.mean():.3f}")

    # A folder with the rule, its weights and its origin; nothing is pickled.
    provenance = {"made_by": "examples/meta_train.py", "outer_steps": num_steps}
    artifact = Artifact(lopt, state.average, task.model.base_sizes, provenance)
    artifact.save(folder)
    return artifact


if __name__ == "__main__":
    main()
