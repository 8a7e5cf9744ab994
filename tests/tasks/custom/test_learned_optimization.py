"""Tasks of the real google/learned_optimization, where it can be imported.

It is not on the package index in a form that can be installed beside a current JAX: put
a clone on PYTHONPATH, and install what it imports (gin-config, dm-haiku, tensorflow,
tensorflow-datasets, seqio).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip(
    "learned_optimization",
    reason="google/learned_optimization is not importable: see this file's docstring",
)
hk = pytest.importorskip("haiku")

from learned_optimization.tasks import base, es_wrapper, quadratics, task_augmentation
from learned_optimization.tasks.datasets import base as datasets_base
from learned_optimization.tasks.fixed import image_mlp, resnet
from learned_optimization.tasks.parametric import image_mlp as parametric_mlp

from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.outer import MetaTraining
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.custom.learned_optimization import adapt

pytestmark = pytest.mark.slow
KEY, RAW = jax.random.key(3), jax.random.PRNGKey(3)
SIZE, CLASSES, BATCH = 8, 10, 16


@pytest.fixture(autouse=True)
def their_numpy(monkeypatch):
    """Names of JAX and NumPy that only that code needs."""
    monkeypatch.setattr(np, "product", np.prod, raising=False)
    with jax.numpy_rank_promotion("allow"):
        yield


def images():
    """Their container, iterators and immutable dictionaries around random images."""

    def batches(seed):
        rng = np.random.default_rng(seed)
        while True:
            yield hk.data_structures.to_immutable_dict(
                {
                    "image": rng.normal(size=(BATCH, SIZE, SIZE, 1)).astype(np.float32),
                    "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
                }
            )

    def iterator(seed):
        lazy = datasets_base.LazyIterator(lambda: batches(seed))
        return datasets_base.ThreadSafeIterator(lazy)

    return datasets_base.Datasets(
        *(iterator(seed) for seed in range(4)),
        extra_info={"num_classes": CLASSES},
        abstract_batch={
            "image": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 1), np.float32),
            "label": jax.ShapeDtypeStruct((BATCH,), np.int32),
        },
    )


SMALL_RESNET = {
    "blocks_per_group": (1, 1, 1, 1),
    "use_projection": (True,) * 4,
    "channels_per_group": (8, 8, 8, 8),
    "initial_conv_kernel_size": 3,
    "initial_conv_stride": 1,
    "max_pool": False,
    "resnet_v2": True,
}


def small_resnet():
    """One of their ResNet classes, on our images."""
    (kind,) = (
        x
        for x in vars(resnet).values()
        if isinstance(x, type) and issubclass(x, base.Task) and x is not base.Task
    )
    task = kind.__new__(kind)
    task.datasets, task._cfg, task._name = images(), SMALL_RESNET, "resnet"
    task._net = hk.transform_with_state(task._hk_forward)
    return task


def fixed_dimension(**kwargs):
    return quadratics.FixedDimQuadraticFamily(6, **kwargs)


TASKS = {
    "quadratic": quadratics.QuadraticTask,
    "noisy mean": quadratics.NoisyMeanQuadraticTask,
    "batches": quadratics.BatchQuadraticTask,
    "haiku parameters": quadratics.SumQuadraticTask,
    "mlp": lambda: image_mlp._MLPImageTask(images(), [12]),
    "dropout": lambda: image_mlp._MLPImageTaskMSE(images(), [12], dropout_rate=0.5),
    "layer norm": lambda: image_mlp._MLPImageTaskNorm(images(), [12], "layer_norm"),
    "batch norm": lambda: image_mlp._MLPImageTaskNorm(images(), [12], "batch_norm"),
    "resnet": small_resnet,
    "es": lambda: es_wrapper.ESTask(TASKS["batch norm"]()),
}
FAMILIES = {
    "quadratics": fixed_dimension,
    "with data": lambda: quadratics.FixedDimQuadraticFamilyData(6),
    "noisy": lambda: quadratics.NoisyQuadraticFamily(4, 0.1),
    "of one": lambda: base.single_task_to_family(quadratics.QuadraticTask()),
    "mlps": lambda: parametric_mlp.ParametricImageMLP(images(), CLASSES, (12,)),
    "reparametrized": lambda: task_augmentation.ReparamWeightsFamily(
        fixed_dimension(), "tensor"
    ),
    "normalized": lambda: task_augmentation.NormalizeTaskGradientTaskFamily(
        fixed_dimension()
    ),
    "bfloat16": lambda: task_augmentation.ConvertFloatDTypeTaskFamily(
        fixed_dimension()
    ),
}


def compare(ours, theirs, variation=None):
    """Initial parameters, loss and gradient of a stored batch are the same bits."""
    params, state = jax.jit(theirs.init_with_state)(RAW)
    init = jax.jit(lambda key: ours.init_with(variation, key))
    assert_equal_bits(init(KEY), params)
    batch = ours.batch(ours.load_data(), jnp.int32(1), "train")

    def their_loss(params):
        loss, _, _ = theirs.loss_with_state_and_aux(params, state, RAW, batch)
        return loss.astype(jnp.promote_types(loss.dtype, jnp.float32))

    def our_loss(params):
        return ours.loss_with(variation, params, KEY, batch)[0]

    value, grads = jax.jit(jax.value_and_grad(our_loss))(params)
    assert_equal_bits((value, grads), jax.jit(jax.value_and_grad(their_loss))(params))
    assert np.isfinite(float(value))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(grads))


def assert_equal_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_bits(name):
    original = TASKS[name]()
    ours = adapt(original, num_batches=3, num_held_out=1)
    assert ours.name == original.name
    compare(ours, original)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_the_same_bits_in_every_configuration(name):
    original = FAMILIES[name]()
    ours = adapt(original, num_batches=3, num_held_out=1, seed=3)
    variation = jax.jit(ours.sample_config)(jax.random.key(8))
    assert_equal_bits(variation, jax.jit(original.sample)(jax.random.PRNGKey(8)))
    assert_equal_bits(ours.config, jax.jit(original.sample)(RAW))
    compare(ours, original.task_fn(variation), variation)


def test_delayed_gradients_need_their_state_and_are_refused():
    family = task_augmentation.AsyncDelayedGradientsTaskFamily(fixed_dimension(), 2)
    with pytest.raises(ValueError, match="may depend on its model state"):
        adapt(family)


def test_meta_training_on_one_of_their_tasks():
    task = adapt(TASKS["mlp"](), num_batches=8, num_held_out=2)
    lopt = SmallFC(hidden_size=3, step_mult=0.01)
    es = PES(num_pairs=2, chunk=2, truncation=4, lengths=EpisodeLengths(8, 8))
    training = MetaTraining.on(task, lopt, es, OuterOptimizer(), num_steps=3)
    state = training.init()
    for _ in range(3):
        state, metrics = training.step(state, {0: task.load_data()})
        assert 0.1 < float(metrics["meta_loss"]) < 1.5
        assert float(metrics["grad_norm"]) > 0
