"""Outer steps on meshes of several sizes; prints a digest of every leaf's bytes.

Not a test: `test_devices.py` starts it, since a process has one number of devices.

    python run_on_devices.py DEVICES CASE MESH ...

A mesh of 0 devices is none at all. `DEVICES` may be `HOST:PORT,NUM,ID`: one device of
one of several processes.
"""

import contextlib
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

import numpy as np

from lopt.baselines import Adam
from lopt.small_fc import SmallFC
from metatrain import devices
from metatrain.estimators.es import EvolutionStrategy
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.streaming import Feed, load
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.models.mlp import MLP
from tasks.synthetic import NoisyQuadratic, Quadratic
from tasks.variation import UNVARYING, Variation

STEPS = 5
IMAGES = ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8)
NETWORK = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
VARIED = Variation("tensor", label_noise=(0.1, 0.3), batch_share=0.5)
# Name: tasks with their variation, optimizer, pairs, chunk, whether data is streamed.
CASES = {
    "cheap": ([(NoisyQuadratic(Quadratic(5)), UNVARYING)], Adam(0.05), 4, 1, False),
    "network": ([(IMAGES, UNVARYING)], NETWORK, 8, 1, False),
    "chunks": ([(IMAGES, VARIED)], NETWORK, 4, 2, False),
    "streamed": ([(IMAGES, VARIED)], Adam(0.05), 4, 2, True),
    "groups": (
        [(IMAGES, UNVARYING), (NoisyQuadratic(Quadratic(5)), UNVARYING)],
        *(Adam(0.05), 4, 2, False),
    ),
}


def digest(tree):
    leaves = [
        np.asarray(
            jax.random.key_data(x)
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        )
        for x in jax.tree.leaves(tree)
    ]
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()


@contextlib.contextmanager
def compilations():
    counted = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def run(case, mesh, reduce="ordered"):
    pairs, lopt, num, chunk, stream = CASES[case]
    es = EvolutionStrategy(
        num_pairs=num, chunk=chunk, truncation=4, lengths=EpisodeLengths(4, 12)
    )
    es = type(es)(**{**vars(es), "reduce": reduce})
    training = MetaTraining(
        tuple(
            ProblemGroup(str(i), InnerTraining(task, lopt, Objective(), variation))
            for i, (task, variation) in enumerate(pairs)
        ),
        *(lopt, es, OuterOptimizer(warmup_steps=2), STEPS),
        mesh=mesh,
    )
    tasks = [task for task, _ in pairs]
    data = [load(task, stream=stream) for task in tasks]
    state, metrics, compiled = training.init(), [], 0
    with Feed(training, tasks, data) as feed, compilations() as counted:
        for step in range(STEPS):
            if step == 2:  # as a checkpoint does, and a resumption
                state = training.place(devices.gather(state, mesh))
            before = len(counted)
            state, row = training.step(state, feed.at(step))
            jax.block_until_ready(row)
            metrics.append(row)
            compiled += (len(counted) - before) if step > 0 else 0
    spread = {
        len(x.sharding.device_set) if not x.is_fully_replicated else 1
        for x in jax.tree.leaves(state.estimator_states)
    }
    whole = devices.gather(state, mesh)
    return {
        "theta": digest(whole.theta),
        "state": digest(whole),
        "metrics": digest(metrics),
        "finished": [float(row["finished"]) for row in metrics],
        "compiled later": compiled,
        "devices of a particle array": sorted(spread),
    }


if __name__ == "__main__":
    case, sizes = sys.argv[2], [int(size) for size in sys.argv[3:]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = {
            size: run(case, devices.make_mesh(size // jax.process_count() or 1))
            if size > 1
            else run(case, None)
            for size in sizes
        }
    unusable = [str(w.message) for w in caught if "donat" in str(w.message)]
    print(json.dumps({"runs": rows, "unusable donations": unusable}))
