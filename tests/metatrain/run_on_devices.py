"""Outer steps on meshes of several sizes; prints a digest of every leaf's bytes.

Not a test: `test_devices.py` starts it, since a process has one number of devices.

    python run_on_devices.py DEVICES CASE MESH ...

A mesh of 0 devices is none at all. `DEVICES` may be `HOST:PORT,NUM,ID`: one device of
one of several processes.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
import warnings

import jax

if "," in sys.argv[1]:
    where, num, index = sys.argv[1].split(",")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(where, int(num), int(index))
else:
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))

import jax.numpy as jnp
import numpy as np

from lopt.baselines import Adam
from lopt.learned.small_fc import SmallFC
from metatrain import devices
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.streaming import Feed, load
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP
from tasks.synthetic.quadratics import NoisyQuadratic, Quadratic
from tasks.variation import UNVARYING, Variation

STEPS = 5
BOWL = NoisyQuadratic(Quadratic(5))
IMAGES = ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8)
NETWORK = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
VARIED = Variation("tensor", label_noise=(0.1, 0.3), batch_share=0.5)
# Tasks with their variation, optimizer, pairs, chunk, whether data is streamed.
CASES = {
    "quick": ([(BOWL, UNVARYING)], Adam(0.05), 8, 1, False),  # hardly optimized
    "network": ([(IMAGES, UNVARYING)], NETWORK, 4, 2, False),
    "streamed": ([(IMAGES, VARIED)], Adam(0.05), 4, 2, True),
    "groups": ([(BOWL, UNVARYING), (Quadratic(3), UNVARYING)], Adam(0.05), 4, 2, False),
    "summed": ([(BOWL, UNVARYING)], Adam(0.05), 8, 2, False),
}


def digest(tree):
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(tree)]
    text = [str((x.shape, x.dtype)) for x in leaves]
    data = b"".join(x.tobytes() for x in leaves)
    return hashlib.sha256(str(text).encode() + data).hexdigest()


@contextlib.contextmanager
def compilations():
    counted = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def build(case, mesh):
    pairs, lopt, num, chunk, _ = CASES[case]
    es = PES(num_pairs=num, chunk=chunk, truncation=4, lengths=EpisodeLengths(4, 12))
    if case == "summed" and mesh is not None:
        es = dataclasses.replace(es, reduce="psum")
    groups = tuple(
        ProblemGroup(str(place), InnerTraining(task, lopt, Objective(), variation))
        for place, (task, variation) in enumerate(pairs)
    )
    outer = OuterOptimizer(warmup_steps=2)
    return MetaTraining(groups, lopt, es, outer, STEPS, mesh=mesh)


def run(case, mesh):
    training = build(case, mesh)
    tasks = [task for task, _ in CASES[case][0]]
    data = [load(task, stream=CASES[case][-1]) for task in tasks]
    state, metrics, thetas, compiled = training.init(), [], [], 0
    with Feed(training, tasks, data) as feed, compilations() as counted:
        for step in range(STEPS):
            if step == 2:  # as a checkpoint does, and a resumption
                state = training.place(devices.gather(state, mesh))
            before = len(counted)
            state, row = training.step(state, feed.at(step))
            jax.block_until_ready(row)
            compiled += len(counted) - before if step else 0
            metrics.append(row)
            thetas.append(digest(state.theta))
    arrays = jax.tree.leaves(state.estimator_states)
    whole = devices.gather(state, mesh)
    return {
        "theta": digest(whole.theta),
        "each theta": thetas,
        "state": digest(whole),
        "metrics": digest(metrics),
        "finished": [float(row["finished"]) for row in metrics],
        "compiled later": compiled,
        "devices of a particle array": sorted(
            {len({str(shard.index) for shard in x.global_shards}) for x in arrays}
        ),
    }


def first_gradient(case, mesh):
    """What the first step's particles came to, and the meta-gradient."""
    training, data = build(case, mesh), load(CASES[case][0][0][0], stream=False)
    state = training.init()
    parts, particles = training._advance_all(
        0,
        state.theta,
        state.estimator_states[0],
        state.step,
        devices.replicate(data, mesh),
    )
    flat = [np.ravel(x) for x in jax.tree.leaves(parts.estimate().grad)]
    row = {
        "first particles": digest(devices.gather(particles, mesh)),
        "first gradient": np.concatenate(flat).tolist(),
        "terms": parts.terms is not None,
    }
    if parts.terms is not None:
        sizes = jax.tree.map(lambda x: jnp.abs(x).mean(axis=0), parts.terms)
        flat = [np.ravel(x) for x in jax.tree.leaves(sizes)]
        row["mean magnitude of a term"] = np.concatenate(flat).tolist()
    return row


if __name__ == "__main__":
    case, sizes = sys.argv[2], [int(size) for size in sys.argv[3:]]
    work = first_gradient if case == "summed" else run
    rows = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in sizes:
            mesh = devices.make_mesh(size // jax.process_count()) if size > 1 else None
            rows[size] = work(case, mesh)
    unusable = [str(w.message) for w in caught if "donat" in str(w.message)]
    print(json.dumps({"runs": rows, "unusable donations": unusable}))
