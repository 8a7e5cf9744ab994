"""Cost of a task: FLOP of a step, bytes on a device, roles of its parameters.

Parameters, states and batches are shapes: nothing is allocated and no prepared data is
read, so a network of billions of parameters is described in seconds.

FLOP are those of the loss and its gradient on one batch, as XLA counts them before
optimization. XLA counts the body of a loop once, so scanned blocks are unrolled first;
where a loop remains (the steps of a recurrent network), the FLOP of the matrix products
are given, each times the lengths of the loops around it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Var

from lopt.base import LearnedOptimizer
from lopt.baselines import Adam
from lopt.learned.small_fc import SmallFC
from lopt.per_parameter.forms import with_execution
from parametrization.axes import Axes
from parametrization.rules import STANDARD, Rules
from parametrization.spec import ParamSpec
from tasks.base import RowBatches, Task
from tasks.modelled import ModelTask
from tasks.source import tree_bytes

_LOOPS = ("scan", "while")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one training run of a task; bytes of one particle."""

    parameters: int
    tensors: int
    flop_per_step: float
    """Forward and backward of one batch, without the optimizer."""
    flop_source: str
    """XLA, or matrix products (see the module)."""
    parameter_bytes: int
    gradient_bytes: int
    adam_bytes: int
    """Bytes of Adam's state."""
    small_fc_bytes: int
    """Bytes of small_fc's state; its accumulators have several decays."""
    activation_bytes: int
    """Bytes of all recorded layer outputs of one batch, an estimate of what the
    backward pass keeps; 0 where there are no layers."""
    batch_bytes: int
    dataset_bytes: int | None
    """Bytes of the data on the device; None if unknown."""


@dataclasses.dataclass(frozen=True)
class Role:
    """Role of a parameter, or of several whose paths differ only in a number."""

    path: str
    """Path in the tree; `*` stands for the differing numbers."""
    count: int
    axes: str
    kind: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    fan_in_ratio: float
    step_scale: float
    forward_scale: float | None
    """Output multiplier of a readout; None for other parameters."""
    init_rms: float | None = None
    """Root mean square at initialization; None if not measured."""


def cost(task: Task) -> Cost:
    """Computes the cost of a task.

    Raises:
        ValueError: if the shapes are only known from data that is not there.
    """
    params, specs, batch = param_shapes(task), task.specs(), task.batch_shapes()
    size = tree_bytes(params)
    flop, source = flop_per_step(task)
    activations = jax.eval_shape(task.activations, params, _key(), batch)
    return Cost(
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        tensors=len(jax.tree.leaves(params)),
        flop_per_step=flop,
        flop_source=source,
        parameter_bytes=size,
        gradient_bytes=size,
        adam_bytes=_state_bytes(Adam(), specs, params),
        small_fc_bytes=_state_bytes(SmallFC(), specs, params),
        activation_bytes=tree_bytes(activations),
        batch_bytes=tree_bytes(batch),
        dataset_bytes=task.dataset_bytes(),
    )


class OptimizerCost(NamedTuple):
    """Cost of an optimizer, independent of the task."""

    meta_parameters: int
    """Number of entries of θ."""
    state_bytes: float
    """Bytes of state per parameter of a large matrix."""
    needs_loss: bool
    """Whether an update takes the loss."""


def optimizer_cost(lopt: LearnedOptimizer) -> OptimizerCost:
    """Computes the cost of an optimizer, on a float32 matrix of 2²⁰ parameters."""
    side = 1024
    spec = ParamSpec(Axes.parse("width -> width"), (side, side), (side, side))
    params = {"matrix": jax.ShapeDtypeStruct((side, side), jnp.float32)}
    specs = {"matrix": spec}

    def update(key: jax.Array, params: Any, **extra: Any) -> Any:
        rule = lopt.as_optax(lopt.init(key), specs, 1000)
        return rule.update(params, rule.init(params), params, **extra)

    try:
        jax.eval_shape(update, _key(), params)
        needs_loss = False
    except ValueError:
        jax.eval_shape(lambda k, p: update(k, p, loss=jnp.zeros([])), _key(), params)
        needs_loss = True
    theta = jax.eval_shape(lopt.init, _key())
    return OptimizerCost(
        meta_parameters=sum(x.size for x in jax.tree.leaves(theta)),
        state_bytes=_state_bytes(lopt, specs, params) / side**2,
        needs_loss=needs_loss,
    )


class UnrollBytes(NamedTuple):
    """Bytes that unrolls need at the same time, beside their states: lower bounds."""

    layer: int
    """Outputs of the widest layer, in bfloat16."""
    batches: int
    """Batches, in bfloat16."""
    draws: int
    """Indices of the rows of all batches."""


def unroll_bytes(
    task: Task, num_steps: int, runs: int, members: int = 1
) -> UnrollBytes:
    """Returns what unrolls that run in one program need, from shapes alone.

    Args:
        task: what is trained.
        num_steps: inner steps, whose batches are drawn before the first.
        runs: unrolls with batches of their own.
        members: unrolls that share each of these batches.

    Raises:
        ValueError: if the shapes are only known from data that is not there.
    """
    batch = task.batch_shapes()
    outputs = jax.eval_shape(task.activations, param_shapes(task), _key(), batch)
    widest = max((x.size for x in jax.tree.leaves(outputs)), default=0)
    rows = task.batch_size if isinstance(task, RowBatches) else 0
    return UnrollBytes(
        layer=2 * runs * members * widest,
        batches=2 * runs * sum(x.size for x in jax.tree.leaves(batch)),
        draws=4 * runs * num_steps * rows,
    )


def run_bytes(task: Task, lopt: LearnedOptimizer, num_steps: int, runs: int) -> int:
    """Returns what whole training runs in one program need at least (see above)."""
    params = param_shapes(task)
    state = tree_bytes(params) + _state_bytes(lopt, task.specs(), params)
    return runs * state + sum(unroll_bytes(task, num_steps, runs))


def memory_bytes() -> int | None:
    """Returns the memory of this process's devices; None if they do not tell."""
    if jax.default_backend() == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [its["bytes_limit"] for its in stats if "bytes_limit" in its]
    return sum(limits) if len(limits) == len(stats) else None


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Checks that some bytes fit into the memory of all processes.

    Raises:
        MemoryError: in one line, with the bytes, the memory and the remedy.
    """
    memory = memory_bytes()
    if memory is not None and needed > memory * jax.process_count():
        raise MemoryError(
            f"{what} needs at least {needed:.1e} bytes of memory, and there are "
            f"{memory * jax.process_count():.1e}: make {remedy} smaller"
        )


def check_program(program: jax.stages.Compiled, what: str, remedy: str) -> None:
    """Checks that a compiled program fits into the memory, before it runs.

    Raises:
        MemoryError: in one line, with the bytes, the memory and the remedy.
    """
    found = program.memory_analysis()
    if found is not None:
        needed = found.argument_size_in_bytes + found.temp_size_in_bytes
        check_memory(needed + found.output_size_in_bytes, what, remedy)


def param_shapes(task: Task) -> Any:
    """Returns the shapes of the parameters."""
    return jax.eval_shape(task.init, _key())


def flop_per_step(task: Task) -> tuple[float, str]:
    """Counts the FLOP of the loss and its gradient on a batch; names the source."""
    task = _unrolled(task)

    def loss(params: Any, key: jax.Array, batch: Any) -> jax.Array:
        return task.loss(params, key, batch)[0]

    arguments = (param_shapes(task), _key(), task.batch_shapes())
    return _flop(jax.value_and_grad(loss), *arguments)


def flop_per_update(task: Task, lopt: LearnedOptimizer) -> tuple[float, str]:
    """Counts the FLOP of an update of all parameters; names the source."""
    # The other forms contain loops.
    lopt = with_execution(lopt, form="plain")
    specs, params = task.specs(), param_shapes(task)

    def update(theta: Any, state: Any, params: Any, loss: jax.Array) -> Any:
        rule = lopt.as_optax(theta, specs, 1000)
        return rule.update(params, state, params, loss=loss)

    theta = jax.eval_shape(lopt.init, _key())
    state = _state_shapes(lopt, specs, params)
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    return _flop(update, theta, state, params, loss)


def roles(task: Task, *, measured: bool = False) -> list[Role]:
    """Returns the roles of all parameters, merging paths that differ in a number.

    Args:
        task: the task.
        measured: initializes the parameters to measure their size.
    """
    rules = task.model.rules if isinstance(task, ModelTask) else STANDARD
    specs = jax.tree_util.tree_leaves_with_path(task.specs())
    values: list[Any] = [None] * len(specs)
    if measured:
        values = jax.tree.leaves(jax.jit(task.init)(jax.random.key(0)))
    found: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
    for (path, spec), value in zip(specs, values, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        key = (re.sub(r"\d+", "*", name), spec)
        found.setdefault(key, []).append((name, value))
    return [
        _role(pattern, spec, alike, rules) for (pattern, spec), alike in found.items()
    ]


def _role(
    pattern: str, spec: ParamSpec, alike: Sequence[tuple[str, Any]], rules: Rules
) -> Role:
    forward, start = None, None
    if spec.kind == "output":
        base = round(spec.fan_in / spec.fan_in_mult)
        forward = rules.forward_scale(spec.fan_in, base)
    values = [np.asarray(value, np.float64) for _, value in alike if value is not None]
    if values:
        start = float(np.sqrt(np.mean(np.square(values))))
    return Role(
        path=pattern if len(alike) > 1 else alike[0][0],
        count=len(alike),
        axes=" ".join(str(spec.axes).split()),
        kind=spec.kind,
        shape=spec.shape,
        base_shape=spec.base_shape,
        fan_in_ratio=spec.fan_in_mult,
        step_scale=rules.step_scale(spec),
        forward_scale=forward,
        init_rms=start,
    )


def _flop(function: Callable[..., Any], *shapes: Any) -> tuple[float, str]:
    traced = jax.jit(function).trace(*shapes)
    if not _has_loop(traced.jaxpr.jaxpr):
        counted = (traced.lower().cost_analysis() or {}).get("flops", 0.0)
        if counted > 0:
            return float(counted), "XLA"
    return float(_matrix_flop(traced.jaxpr.jaxpr)), "matrix products"


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _state_shapes(lopt: LearnedOptimizer, specs: Any, params: Any) -> Any:
    def state(key: jax.Array, params: Any) -> Any:
        return lopt.as_optax(lopt.init(key), specs, 1000).init(params)

    return jax.eval_shape(state, _key(), params)


def _state_bytes(lopt: LearnedOptimizer, specs: Any, params: Any) -> int:
    return tree_bytes(_state_shapes(lopt, specs, params))


def _unrolled(task: Task) -> Task:
    """Returns the task with scanned blocks unrolled."""
    model: Any = task.model if isinstance(task, ModelTask) else None
    if not getattr(model, "scan", False):
        return task
    changed: Any = task
    return dataclasses.replace(changed, model=dataclasses.replace(model, scan=False))


def _inner(equation: Any) -> list[Jaxpr]:
    """Programs inside an operation."""

    def program(value: Any) -> Any:
        # Up to JAX 0.11 programs with constants are of a class of their own.
        return getattr(value, "jaxpr", value)

    values = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(program(x), Jaxpr)
    )
    return [program(x) for x in values if isinstance(program(x), Jaxpr)]


def _has_loop(program: Jaxpr) -> bool:
    return any(
        equation.primitive.name in _LOOPS or any(map(_has_loop, _inner(equation)))
        for equation in program.eqns
    )


def _matrix_flop(program: Jaxpr) -> int:
    """Twice the multiplications of the matrix products that the outputs need.

    Products in loops count once per iteration.
    """
    total = 0
    needed = {x for x in program.outvars if isinstance(x, Var)}
    for equation in reversed(program.eqns):
        if not needed.intersection(equation.outvars):
            continue
        needed.update(x for x in equation.invars if isinstance(x, Var))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape  # pyright: ignore
            terms = math.prod(shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)  # pyright: ignore
        times = equation.params.get("length", 1)
        total += times * sum(map(_matrix_flop, _inner(equation)))
    return total
