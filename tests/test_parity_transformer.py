"""A transformer trains alike in JAX and PyTorch, each library with its own gradients.

Here an attention kernel is `width -> heads head_dim`, in PyTorch one matrix: the rule
must see a matrix in both.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.functional import cross_entropy, gelu

from lopt import Artifact, SmallFC
from lopt.wrappers import WeightDecay
from parametrization import ADAM_LIKE
from tasks.models.transformer import Transformer
from torch_lopt import LearnedOptimizer

STEPS, BATCH, LENGTH, VOCABULARY = 20, 4, 6, 11
WEIGHT_DECAY = 0.01
# Wider than its base, two heads there and four here; depth 1.
MODEL = Transformer(
    width=16, depth=1, head_dim=4, mlp_ratio=2, base_width=8, base_head_dim=4
)
RULE = SmallFC(hidden_size=8, step_mult=0.01, rules=ADAM_LIKE)


class Norm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width, eps=1e-6)


class GPT(nn.Module):
    """The same network as `Transformer`, its attention kernels one matrix each."""

    def __init__(self, model):
        super().__init__()
        self.model, width = model, model.width
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(LENGTH, width)
        self.attention_norm, self.mlp_norm, self.norm = (Norm(width) for _ in range(3))
        self.query, self.key, self.value = (
            nn.Linear(width, width, bias=False) for _ in range(3)
        )
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, model.mlp_ratio * width)
        self.down = nn.Linear(model.mlp_ratio * width, width)
        self.readout = nn.Linear(width, VOCABULARY)

    def forward(self, tokens):
        model = self.model
        x = self.embedding(tokens) + self.positions.weight
        x = x + self.attention(self.attention_norm(x))
        x = x + self.down(gelu(self.up(self.mlp_norm(x)), approximate="tanh"))
        # μP's output multiplier, the bias outside.
        scale = model.base_width / model.width
        return scale * (self.norm(x) @ self.readout.weight.T) + self.readout.bias

    def attention(self, x):
        model = self.model
        split = lambda y: y.unflatten(-1, (-1, model.head_dim))  # noqa: E731
        query, key, value = (split(f(x)) for f in (self.query, self.key, self.value))
        scale = ADAM_LIKE.attention_scale(model.head_dim, model.base_head_dim)
        logits = scale * torch.einsum("bihd,bjhd->bhij", query, key)
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(later, -torch.inf).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2))


BLOCK = "residual/block_0"
NAMES = {
    "embedding.weight": "embedding/table",
    "positions.weight": "positions/table",
    **{f"{n}.weight": f"{BLOCK}/attention/{n}/kernel" for n in ("query", "key")},
    "value.weight": f"{BLOCK}/attention/value/kernel",
    "out.weight": f"{BLOCK}/attention/out/kernel",
    "out.bias": f"{BLOCK}/attention/out/bias",
    **{
        f"{layer}.{ours}": f"{BLOCK}/mlp/{layer}/{theirs}"
        for layer in ("up", "down")
        for ours, theirs in (("weight", "kernel"), ("bias", "bias"))
    },
    **{
        f"{norm}.{ours}": f"{prefix}{norm}/{theirs}"
        for norm, prefix in (
            ("attention_norm", f"{BLOCK}/"),
            ("mlp_norm", f"{BLOCK}/"),
            ("norm", ""),
        )
        for ours, theirs in (("weight", "gain"), ("bias", "shift"))
    },
    "readout.weight": "readout/kernel",
    "readout.bias": "readout/bias",
}
"""PyTorch's names of the parameters, and their paths in JAX."""


def by_path(params):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def to_torch(path, value):
    """What PyTorch has in place of an array of JAX's: `(out, in)` for a kernel."""
    if not path.endswith("kernel"):
        return value
    fan_in = value.shape[0] * (value.shape[1] if path.endswith("/out/kernel") else 1)
    return np.ascontiguousarray(value.reshape(fan_in, -1).T)


def in_jax(optimizer, theta, params, tokens):
    specs = MODEL.specs((LENGTH,), VOCABULARY)
    decayed = WeightDecay(optimizer, WEIGHT_DECAY)

    def loss(params, batch):
        logits = MODEL.apply(params, batch[:, :-1], VOCABULARY)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return nats.mean()

    def trajectory(theta, params):
        transformation = decayed.as_optax(theta, specs, STEPS)

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss)(params, batch)
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, transformation.init(params)), tokens)[1]

    compiled = jax.jit(trajectory)
    return by_path(compiled(theta, params))


def in_torch(folder, params, tokens):
    model = GPT(MODEL).double()
    with torch.no_grad():
        for name, param in model.named_parameters():
            value = to_torch(NAMES[name], params[NAMES[name]])
            param.copy_(torch.tensor(value))
    base = GPT(dataclasses.replace(MODEL, width=MODEL.base_width))
    optimizer = LearnedOptimizer.from_pretrained(
        model, folder, base=base, weight_decay=WEIGHT_DECAY
    )
    path = {name: [] for name in NAMES}
    for batch in torch.tensor(tokens):
        optimizer.zero_grad()
        logits = model(batch[:, :-1])
        cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        for name, param in model.named_parameters():
            path[name].append(param.detach().numpy().copy())
    return {name: np.stack(values) for name, values in path.items()}


def errors_of(factored_axes, folder):
    """Largest difference over all steps, over the largest displacement, by tensor."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCABULARY, size=(STEPS, BATCH, LENGTH + 1))
    rule = dataclasses.replace(RULE, factored_axes=factored_axes)
    draw = lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(x.shape[0]))  # noqa: E731
    theta = jax.tree.map(draw, jax.eval_shape(rule.init, jax.random.key(0)))
    theta |= {n: 0.1 * x for n, x in theta.items() if n.endswith("offsets")}
    Artifact(rule, theta, {"width": MODEL.base_width}).save(folder)
    with jax.enable_x64():
        params = MODEL.init(jax.random.key(0), (LENGTH,), VOCABULARY)
        theta, params = jax.tree.map(jnp.float64, (theta, params))
        ours, start = in_jax(rule, theta, params, tokens), by_path(params)
    theirs = in_torch(folder, start, tokens)
    assert sorted(ours) == sorted(NAMES.values())
    errors = {}
    for name, path in NAMES.items():
        want = np.stack([to_torch(path, x) for x in ours[path]])
        assert want.dtype == theirs[name].dtype == np.float64
        moved = np.abs(want[-1] - to_torch(path, start[path])).max()
        assert moved > 0, name
        errors[name] = np.abs(want - theirs[name]).max() / moved
    return errors


def test_matrices_of_attention_move_alike(tmp_path):
    errors = errors_of("matrix", tmp_path / "artifact")
    assert max(errors.values()) <= 1e-9, errors


def test_tensors_of_attention_do_not(tmp_path):
    """What an artifact from before `factored_axes` was trained with."""
    errors = errors_of("tensor", tmp_path / "artifact")
    assert errors["query.weight"] > 1e-2, errors
