"""JAX and PyTorch run the same artifact on the same gradients to the same parameters.

Tensors are kept in canonical layout here, as JAX has them, and permuted for PyTorch.
"""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from torch.optim.lr_scheduler import LambdaLR

from lopt import PAPER, WIDTH_SAFE, Artifact, SmallFC
from lopt.schedules import Constant
from lopt.wrappers import ScheduledSteps, WeightDecay
from parametrization import ADAM_LIKE, Axes, ParamSpec
from torch_lopt import LearnedOptimizer

STEPS = 50
BOUNDS = {np.float32: 1e-5, np.float64: 1e-10}
SCALES_FILE = "mup_scales.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter in both libraries.

    Attributes:
        axes: names in canonical order.
        shape: canonical.
        base: canonical.
        layout: what PyTorch calls the layout.
        order: canonical axes in PyTorch's order.
        step_scale: what μP must make of it.
    """

    axes: str
    shape: tuple[int, ...]
    base: tuple[int, ...]
    layout: str
    order: tuple[int, ...]
    step_scale: float = 1.0

    def torch_shape(self, shape):
        return tuple(shape[axis] for axis in self.order)

    def to_torch(self, value):
        return np.array(np.transpose(value, self.order), order="C")

    def from_torch(self, value):
        return np.transpose(value, np.argsort(self.order))


CONV = "kernel kernel channels -> channels"
TENSORS = {
    "square": Tensor("width -> width", (8, 8), (2, 2), "linear", (1, 0), 1 / 4),
    "tall": Tensor("width -> mlp", (12, 7), (4, 6), "linear", (1, 0), 1 / 3),
    "readout": Tensor("width -> classes", (8, 5), (2, 5), "linear", (1, 0)),
    "conv": Tensor(CONV, (3, 3, 3, 8), (3, 3, 1, 4), "conv", (3, 2, 0, 1), 1 / 3),
    "conv_square": Tensor(
        CONV, (3, 2, 4, 4), (3, 2, 2, 2), "conv", (3, 2, 0, 1), 1 / 2
    ),
    "up": Tensor(
        CONV, (2, 2, 4, 4), (2, 2, 1, 2), "conv_transpose", (2, 3, 0, 1), 1 / 4
    ),
    "embedding": Tensor("vocab -> width", (11, 6), (11, 3), "embedding", (0, 1)),
    "square_embedding": Tensor("vocab -> width", (6, 6), (6, 3), "embedding", (0, 1)),
    "vector": Tensor("-> width", (7,), (2,), "canonical", (0,)),
    "scalar": Tensor("->", (), (), "canonical", ()),
    "line": Tensor(  # a convolution of one dimension
        "kernel width -> width", (3, 6, 6), (3, 2, 2), "canonical", (0, 1, 2), 1 / 3
    ),
}
OPTIMIZERS = {
    "paper": SmallFC(step_mult=0.01, epsilons=PAPER, rules=ADAM_LIKE),
    "width_safe": SmallFC(
        hidden_size=16,
        hidden_layers=1,
        step_mult=0.01,
        exp_mult=0.01,
        momentum_decays=(0.8, 0.98),
        factored_decays=(0.9, 0.995),
        epsilons=WIDTH_SAFE,
        rules=ADAM_LIKE,
    ),
}


def uneven(rng, shape):
    """Normal values with a factor exp(N(0, 1)) along every axis."""
    values = rng.normal(size=shape)
    for axis, size in enumerate(shape):
        factor = np.exp(rng.normal(size=size))
        values = values * factor.reshape(
            [size if i == axis else 1 for i in range(len(shape))]
        )
    return values


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def problem():
    """Parameters, and gradients `[T, *S]` of 1e-4 to 1 by tensor."""
    rng = np.random.default_rng(4)
    params, grads = {}, {}
    for i, (name, tensor) in enumerate(TENSORS.items()):
        params[name] = np.float32(rng.normal(size=tensor.shape))
        pattern, scale = uneven(rng, tensor.shape), 10.0 ** -(i % 5)
        noise = rng.normal(size=(STEPS, *tensor.shape))
        grads[name] = np.float32(scale * pattern[None] * (0.3 + noise))
    return params, grads


@pytest.fixture(scope="module", params=OPTIMIZERS)
def folder(request, tmp_path_factory):
    """An artifact with random weights and offsets."""
    optimizer = OPTIMIZERS[request.param]
    rng = np.random.default_rng(1)

    def leaf(path, x):
        std = 0.05 if path[-1].key.endswith("offsets") else 1 / np.sqrt(x.shape[0])
        return np.float32(std * rng.normal(size=x.shape))

    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    theta = jax.tree_util.tree_map_with_path(leaf, shapes)
    path = tmp_path_factory.mktemp("parity") / "artifact"
    Artifact(optimizer, theta, {"width": 2}).save(path)
    return path


def in_jax(folder, problem, dtype, wrap=lambda optimizer: optimizer):
    artifact = Artifact.load(folder)
    optimizer = wrap(artifact.optimizer)
    specs = {
        name: ParamSpec(Axes.parse(tensor.axes), tensor.shape, tensor.base)
        for name, tensor in TENSORS.items()
        if name in problem[0]
    }

    def trajectory(theta, params, grads):
        transformation = optimizer.as_optax(theta, specs, STEPS)

        def step(carry, grad):
            params, state = carry
            updates, state = transformation.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = (params, transformation.init(params))
        return jax.lax.scan(step, start, grads)[1]

    with jax.enable_x64(dtype == np.float64):
        inputs = jax.tree.map(
            lambda x: np.asarray(x, dtype), (artifact.theta, *problem)
        )
        compiled = jax.jit(trajectory)
        # As jax arrays: θ is indexed inside.
        path = compiled(*jax.tree.map(jax.numpy.asarray, inputs))
        return jax.tree.map(np.asarray, path)


def in_torch(
    folder, problem, dtype, layouts=None, steps=STEPS, schedule=None, **options
):
    """Trajectories of all tensors, or of those in `layouts`, laid out otherwise."""
    start, grads = problem
    layouts = layouts or {name: TENSORS[name].layout for name in start}
    params = {
        name: torch.nn.Parameter(
            torch.tensor(tensor.to_torch(start[name].astype(dtype)))
        )
        for name, tensor in TENSORS.items()
        if name in layouts
    }
    optimizer = LearnedOptimizer.from_pretrained(
        params.items(),
        folder,
        base={n: t.torch_shape(t.base) for n, t in TENSORS.items()},
        layouts=layouts,
        **options,
    )
    scheduler = schedule and schedule(optimizer)
    path = {name: [] for name in params}
    for i in range(steps):
        for name, param in params.items():
            grad = TENSORS[name].to_torch(grads[name][i].astype(dtype))
            param.grad = torch.tensor(grad)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        for name, param in params.items():
            value = param.detach().numpy().copy()
            path[name].append(TENSORS[name].from_torch(value))
    return {name: np.stack(values) for name, values in path.items()}


@pytest.fixture(scope="module", params=BOUNDS, ids=lambda dtype: dtype.__name__)
def both(request, folder, problem):
    """Both trajectories, `[T, *S]` in canonical layout, and the bound on them."""
    dtype = request.param
    return in_jax(folder, problem, dtype), in_torch(folder, problem, dtype), dtype


@pytest.mark.parametrize("name", TENSORS)
def test_fifty_steps_agree(both, problem, name):
    ours, theirs, dtype = (x if isinstance(x, type) else x[name] for x in both)
    assert ours.dtype == theirs.dtype == dtype
    assert ours.shape == theirs.shape == (STEPS, *TENSORS[name].shape)
    # Relative to what moved as well: the parameters must have gone somewhere.
    assert np.abs(ours[-1] - problem[0][name]).max() > 100 * BOUNDS[np.float32]
    for step, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        error = np.abs(x - y).max() / np.abs(x).max()
        assert error <= BOUNDS[dtype], f"step {step}"


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(np.float32, marks=pytest.mark.slow), np.float64],
    ids=lambda dtype: dtype.__name__,
)
def test_weight_decay_under_a_schedule_agrees(folder, problem, dtype):
    """p ← p − lr(t)·(s·u + λ·p): the μP step scale s, 1/4 to 1 here, spares λ·p."""
    # JAX computes schedules in float32: these rates, k/32 of 0.75, are exact there.
    warmup = Constant(warmup=32, unit="steps")
    wrap = lambda inner: ScheduledSteps(WeightDecay(inner, 0.1), 0.75, warmup)  # noqa: E731
    schedule = lambda opt: LambdaLR(opt, lambda step: min(step / 32, 1.0))  # noqa: E731
    options = {"schedule": schedule, "lr": 0.75, "weight_decay": 0.1}
    ours = in_jax(folder, problem, dtype, wrap)
    theirs = in_torch(folder, problem, dtype, **options)
    pylos = in_torch(folder, problem, dtype, decay="pylo", **options)
    for name, tensor in TENSORS.items():
        largest = np.abs(ours[name]).max()
        assert np.abs(ours[name] - theirs[name]).max() <= BOUNDS[dtype] * largest, name
        if tensor.step_scale != 1.0:
            apart = np.abs(ours[name] - pylos[name]).max()
            assert apart > 1000 * BOUNDS[np.float32] * largest, name


def test_the_bound_would_notice_exchanged_axes(both, folder, problem):
    """Square tensors with fan-in and fan-out declared the other way are far away."""
    wrong = {
        "square": "canonical",
        "conv_square": "conv_transpose",
        "up": "conv",
        "square_embedding": "linear",
    }
    ours, _, dtype = both
    theirs = in_torch(folder, problem, dtype, wrong, steps=10)
    for name in wrong:
        error = np.abs(ours[name][9] - theirs[name][9]).max()
        assert error > 100 * BOUNDS[np.float32] * np.abs(ours[name][9]).max()


def scales_of_torch(folder, cases):
    """First steps with base shapes over first steps without, by case."""
    steps = []
    torch_of = {name: case["torch"] for name, case in cases.items()}
    bases = {name: entry["base_shape"] for name, entry in torch_of.items()}
    for base in (bases, None):
        params = {
            name: torch.nn.Parameter(torch.zeros(entry["shape"]))
            for name, entry in torch_of.items()
        }
        optimizer = LearnedOptimizer.from_pretrained(
            params.items(),
            folder,
            base=base,
            layouts={name: entry["layout"] for name, entry in torch_of.items()},
        )
        generator = torch.Generator().manual_seed(0)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
        steps.append({name: param.detach().numpy() for name, param in params.items()})
    scaled, plain = steps
    return {name: (scaled[name], plain[name]) for name in cases}


def test_torch_scales_steps_as_the_table_says(golden_dir, folder):
    table = json.loads((golden_dir / SCALES_FILE).read_text())["cases"]
    cases = {case["name"]: case for case in table if case["torch"] is not None}
    assert len(cases) >= 15
    assert all("torch_null" in case for case in table if case["torch"] is None)
    for name, (scaled, plain) in scales_of_torch(folder, cases).items():
        assert np.abs(plain).max() > 0
        want = cases[name]["ADAM_LIKE"]["step_scale"]
        np.testing.assert_allclose(scaled, want * plain, rtol=1e-6, err_msg=name)


def test_the_tensors_here_have_the_scales_they_claim():
    for tensor in TENSORS.values():
        spec = ParamSpec(Axes.parse(tensor.axes), tensor.shape, tensor.base)
        assert ADAM_LIKE.step_scale(spec) == pytest.approx(tensor.step_scale, rel=1e-15)
