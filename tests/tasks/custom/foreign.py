"""Small tasks with the methods of google/learned_optimization's, for contract tests.

They are written from a description of that library's interface. `Base` falls back from
richer losses to poorer ones as its base class does.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np

CLASSES, PIXELS, BATCH = 3, 5, 4


class Base:
    """Methods that a task inherits in that library."""

    datasets = None

    def init_with_state(self, key):
        return self.init(key), None

    def loss_with_state(self, params, state, key, data):
        if state is not None:
            raise ValueError("no loss_with_state for a state")
        return self.loss(params, key, data), None

    def loss_and_aux(self, params, key, data):
        return self.loss(params, key, data), {}

    def loss_with_state_and_aux(self, params, state, key, data):
        if state is not None:
            raise ValueError("no loss_with_state_and_aux for a state")
        loss, aux = self.loss_and_aux(params, key, data)
        return loss, None, aux

    def normalizer(self, loss):
        return 1e6 * loss

    @property
    def name(self):
        return type(self).__name__


class Quadratic:
    """No data, no base class, a bare array of parameters, noise from the key."""

    def __init__(self, dimension=4):
        self.dimension = dimension

    def init(self, key):
        assert key.shape == (2,) and key.dtype == jnp.uint32
        return 2.0 * jax.random.normal(key, (self.dimension,))

    def loss(self, params, key, data):
        assert data == () and key.shape == (2,) and key.dtype == jnp.uint32
        return jnp.sum((params - 0.1 * jax.random.normal(key, params.shape)) ** 2)


def image_batches(seed, num=None, reuse=False):
    """Dictionaries of arrays; with `reuse` always the same memory, written anew."""
    rng = np.random.default_rng(seed)
    images = np.zeros((BATCH, PIXELS), np.float32)
    labels = np.zeros(BATCH, np.int32)
    count = 0
    while num is None or count < num:
        if not reuse:
            images, labels = images.copy(), labels.copy()
        images[:] = rng.normal(size=images.shape)
        labels[:] = rng.integers(0, CLASSES, BATCH)
        count += 1
        yield {"image": images, "label": labels}


def datasets(reuse=False, num=None):
    names = ("train", "inner_valid", "outer_valid", "test")
    sources = {n: image_batches(seed, num, reuse) for seed, n in enumerate(names)}
    return types.SimpleNamespace(**sources)


class Classifier(Base):
    """Softmax regression on dictionaries of arrays, with an accuracy."""

    def __init__(self, **kwargs):
        self.datasets = datasets(**kwargs)

    def init(self, key):
        w = jax.random.normal(key, (PIXELS, CLASSES))
        return {"linear": {"w": w, "b": jnp.zeros(CLASSES)}}

    def loss_and_aux(self, params, key, data):
        logits = data["image"] @ params["linear"]["w"]
        logits = logits + jnp.broadcast_to(params["linear"]["b"], logits.shape)
        hot = jax.nn.one_hot(data["label"], CLASSES)
        loss = -jnp.mean(jnp.sum(hot * jax.nn.log_softmax(logits), axis=-1))
        return loss, {"accuracy": jnp.argmax(logits, -1) == data["label"]}

    def loss(self, params, key, data):
        return self.loss_and_aux(params, key, data)[0]


class Scales:
    """A family: a configuration is the scale of the initialization and a centre."""

    datasets = None
    name = "scales"

    def sample(self, key):
        scale, *centre = jax.random.uniform(key, (4,))
        return {"log_scale": 2.0 * scale - 1.0, "centre": jnp.stack(centre)}

    def task_fn(self, cfg):
        class Task(Base):
            def init(self, key):
                return {"x": jnp.exp(cfg["log_scale"]) * jax.random.normal(key, (3,))}

            def loss(self, params, key, data):
                return jnp.sum((params["x"] - cfg["centre"]) ** 2)

        return Task()

    def eval_task_fn(self, cfg):
        raise TypeError("as in the library")


class Level(Scales):
    """A family whose loss is its configuration, uniform in [1, 3]."""

    def sample(self, key):
        return jax.random.uniform(key, minval=1.0, maxval=3.0)

    def task_fn(self, cfg):
        class Task(Base):
            def init(self, key):
                return jnp.zeros(2)

            def loss(self, params, key, data):
                return cfg + jnp.sum(params**2)

        return Task()


class Averaging(Classifier):
    """Model state as of batch normalization: averages that the loss does not use.

    Like many there it has no `init` of its own, and no auxiliary values.
    """

    def init(self, key):
        raise NotImplementedError

    def init_with_state(self, key):
        state = {"mean": jnp.full(PIXELS, jnp.nan), "count": jnp.int32(7)}
        return Classifier.init(self, key), state

    def loss_with_state(self, params, state, key, data):
        mean = jnp.mean(data["image"], axis=0)
        centred = data["image"] - jnp.broadcast_to(mean, data["image"].shape)
        loss = self.loss(params, key, {**data, "image": centred})
        new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "count": state["count"] + 1}
        return loss, new


class Shifting(Averaging):
    """The same in evaluation mode: what is subtracted is the state."""

    def loss_with_state(self, params, state, key, data):
        mean = jnp.broadcast_to(state["mean"], data["image"].shape)
        loss = self.loss(params, key, {**data, "image": data["image"] - mean})
        return loss, state


class Doubled(Averaging):
    """A backward pass of its own, which does not use the state that it is handed."""

    def factor(self, state):
        return 2.0

    def loss_with_state(self, params, state, key, data):
        @jax.custom_vjp
        def loss(params, state):
            return self.loss(params, key, data)

        def forward(params, state):
            value, pullback = jax.vjp(lambda p: self.loss(p, key, data), params)
            return value, (pullback, state)

        def backward(residuals, g):
            pullback, state = residuals
            return *pullback(self.factor(state) * g), None

        loss.defvjp(forward, backward)
        return loss(params, state), state


class Delayed(Doubled):
    """A loss that does not use the state, and a gradient that does."""

    def factor(self, state):
        return jnp.sum(state["mean"])


class Compiled(Averaging):
    """State beside the loss in one `jit`, as if somebody had been in a hurry."""

    def loss_with_state(self, params, state, key, data):
        return jax.jit(super().loss_with_state)(params, state, key, data)


class Peeking(Classifier):
    """Initializes by a look at a batch of its own, whenever it is traced."""

    def init(self, key):
        next(self.datasets.train)
        return super().init(key)


class Returning(Base):
    """Returns what it is told to."""

    def __init__(self, value, aux=None):
        self.value, self.aux = value, {} if aux is None else aux

    def init(self, key):
        return {"x": jnp.ones(2)}

    def loss_and_aux(self, params, key, data):
        return self.value(params["x"]), self.aux
