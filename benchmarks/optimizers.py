"""A row per optimizer: `python -m benchmarks.optimizers [NAME ...]`.

What an update costs beside fused Adam, for a 427,658-parameter MLP [128, 128, 128] on
32×32×3 images and 16 stacked particles, each with its own θ: one jitted program updates
them all, parameters and state donated. Programs of all optimizers, Adam and a 2048³
float32 matrix product are run in turn, and medians taken, so that what else the machine
does falls on all of them alike; CPU seconds of the process stand beside wall seconds.

FLOP and bytes per parameter: as XLA counts them for the plain form (it does not count
the turns of a loop), and, where there is one, the closed form: multiplications and
additions of the network behind the split first layer, and what must move once
(gradient, parameter, step; the state in and out).

Compile seconds: the update of one particle, for an MLP of 4 tensors and a transformer
of 84; their ratio in CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.run.environment import describe_machine
from lopt import (
    ELO,
    RNNMLP,
    Adam,
    Celo,
    Celo2,
    CeloAdam,
    LearnableAdam,
    Lion,
    MLPLOpt,
    Muon,
    NNAdam,
    Nominal,
    SmallFC,
    VeLO,
)
from lopt.per_parameter import features
from lopt.per_parameter.features import FeatureSet
from lopt.per_parameter.forms import with_execution
from parametrization import ADAM_LIKE
from tasks import MLP, ImageClassification, LanguageModelling, Transformer
from tasks.data.images import ImageDataset, Images

PARTICLES = 16
MIB = 2**20

OPTIMIZERS: dict[str, Any] = {
    "small_fc 32": SmallFC(hidden_size=32, rules=ADAM_LIKE),
    "small_fc 4": SmallFC(hidden_size=4, rules=ADAM_LIKE),
    "mlp_lopt 32": MLPLOpt(rules=ADAM_LIKE),
    "CELO2": Celo2(rules=ADAM_LIKE),
    "CELO2-base": Celo2(orthogonalize=False, rules=ADAM_LIKE),
    "ELO": ELO(rules=ADAM_LIKE),
    "STAR": Nominal(SmallFC(rules=ADAM_LIKE), rules=ADAM_LIKE),
    "RNN-MLP": RNNMLP(rules=ADAM_LIKE),
    "NNAdam": NNAdam(rules=ADAM_LIKE),
    "VeLO 64, 16": VeLO(lstm_hidden_size=64, param_inits=16, rules=ADAM_LIKE),
    "Celo": Celo(rules=ADAM_LIKE),
    "Celo-Adam": CeloAdam(rules=ADAM_LIKE),
    "learnable Adam": LearnableAdam(rules=ADAM_LIKE),
    "Lion": Lion(),
    "Muon": Muon(),
    "Adam": Adam(),
}
"""Optimizers to measure, by name."""

FEATURES: dict[type, FeatureSet] = {
    SmallFC: features.SMALL_FC,
    MLPLOpt: features.MLP_LOPT,
    Celo2: features.VELO,
    ELO: features.SMALL_FC,
}
"""Optimizers whose FLOP have a closed form."""


def closed_flop(optimizer: Any) -> int | None:
    """Returns FLOP per parameter of the network after the split first layer."""
    feature_set = FEATURES.get(type(optimizer))
    if feature_set is None:
        return None
    momenta = len(optimizer.momentum_decays)
    counts = features.Counts(momenta, 1, momenta)
    inputs = sum(counts.of(f.count) for f in feature_set.features if f.per == "element")
    hidden, outputs = optimizer.hidden_size, 2 if optimizer.exp_mult else 1
    products = inputs * hidden + (optimizer.hidden_layers - 1) * hidden**2
    return 2 * (products + hidden * outputs)


@dataclasses.dataclass(frozen=True)
class Shape(Images):
    """Images of which only the shape is used."""

    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10

    def load(self) -> ImageDataset:
        """Never called."""
        raise NotImplementedError


def mlp(*widths: int) -> Any:
    """Returns specs of an MLP on 32×32×3 images."""
    return ImageClassification(MLP(widths, base_width=32), Shape()).specs()


def drawn(specs: Any, seed: int, scale: float, particles: int | None = None) -> Any:
    """Draws normal values of the shapes of specs."""
    leaves, structure = jax.tree.flatten(specs)
    lead = () if particles is None else (particles,)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [
            scale * jax.random.normal(key, (*lead, *spec.shape))
            for key, spec in zip(keys, leaves, strict=True)
        ]
    )


def updated(optimizer: Any, specs: Any) -> Callable[..., Any]:
    """Builds (θ, parameters, state, gradients) -> parameters and state."""

    def update(theta: Any, params: Any, state: Any, grads: Any) -> Any:
        rule = optimizer.as_optax(theta, specs, 1000)
        loss = jnp.float32(1.0)
        steps, state = optax.with_extra_args_support(rule).update(
            grads, state, params, loss=loss
        )
        return optax.apply_updates(params, steps), state

    return update


def start(optimizer: Any, theta: Any, params: Any, specs: Any) -> Any:
    """Returns the state of the optimizer."""
    return optimizer.as_optax(theta, specs, 1000).init(params)


def compiled(optimizer: Any, specs: Any) -> tuple[Any, float, float]:
    """Compiles one particle's program, and times it in wall and CPU seconds."""
    theta, params = optimizer.init(jax.random.key(0)), drawn(specs, 1, 0.1)
    state, grads = start(optimizer, theta, params, specs), drawn(specs, 2, 0.01)
    wall, cpu = time.perf_counter(), time.process_time()
    program = jax.jit(updated(optimizer, specs)).lower(theta, params, state, grads)
    program = program.compile()
    return program, time.perf_counter() - wall, time.process_time() - cpu


class Stacked:
    """One optimizer's program for all particles, and its timings."""

    def __init__(self, optimizer: Any, specs: Any) -> None:
        keys = jax.random.split(jax.random.key(0), PARTICLES)
        self.theta = jax.vmap(optimizer.init)(keys)
        params = drawn(specs, 1, 0.1, PARTICLES)
        state = jax.vmap(lambda t, p: start(optimizer, t, p, specs))(self.theta, params)
        self.grads = drawn(specs, 2, 0.01, PARTICLES)
        update = jax.jit(jax.vmap(updated(optimizer, specs)), donate_argnums=(1, 2))
        self.program = update.lower(self.theta, params, state, self.grads).compile()
        self.size = sum(x.size for x in jax.tree.leaves(params))
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(state)) / self.size
        memory = self.program.memory_analysis()
        assert memory is not None
        self.temporary = memory.temp_size_in_bytes / MIB
        self.at = jax.block_until_ready(
            self.program(self.theta, params, state, self.grads)
        )
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self) -> None:
        """Times one update."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.at = jax.block_until_ready(self.program(self.theta, *self.at, self.grads))
        self.cpu.append((time.process_time() - cpu) / self.size * 1e9)
        self.wall.append((time.perf_counter() - wall) / self.size * 1e9)


def interleaved(programs: dict[str, Stacked], repeats: int) -> float:
    """Steps all in turn; returns the rate of the 2048³ product in GFLOP/s."""
    matrix, product = jnp.ones((2048, 2048)) * 0.5, jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    seconds = []
    for _ in range(repeats):
        for program in programs.values():
            program.step()
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def static_costs(optimizer: Any, big: Any, small: Any, deep: Any) -> dict[str, Any]:
    """Returns a row's figures that need only the compiler."""
    size = sum(math.prod(spec.shape) for spec in jax.tree.leaves(big))
    plain = with_execution(optimizer, form="plain")
    cost = compiled(plain, big)[0].cost_analysis() or {}
    _, small_wall, small_cpu = compiled(optimizer, small)
    _, deep_wall, deep_cpu = compiled(optimizer, deep)
    return {
        "flop_xla": round(cost.get("flops", 0.0) / size, 1),
        "bytes_xla": round(cost.get("bytes accessed", 0.0) / size, 1),
        "compile_seconds_4_tensors": round(small_wall, 2),
        "compile_seconds_84_tensors": round(deep_wall, 2),
        "compile_ratio": round(deep_cpu / small_cpu, 2),
    }


def describe(row: dict[str, Any]) -> str:
    """Returns one line of the table, the ratio to Adam last."""
    columns = {
        "flop_xla": ",.0f",
        "flop_closed": ",d",
        "bytes_xla": ",.0f",
        "bytes_closed": ",.0f",
        "state_bytes": ".1f",
        "temporary_mib": ",d",
        "compile_seconds_4_tensors": ".1f",
        "compile_seconds_84_tensors": ".1f",
        "compile_ratio": ".1f",
        "wall_ns": ".1f",
        "cpu_ns": ".1f",
        "to_adam": ".1f",
    }
    values = [
        "–" if row.get(name) is None else format(row[name], how)
        for name, how in columns.items()
    ]
    return f"{row['optimizer']:<15}" + "".join(f"{value:>9}" for value in values)


TITLES = (
    "FLOP closed bytes closed state tmp_MiB 4_t_s 84_t_s ratio wall_ns CPU_ns /Adam"
)
HEADER = f"{'optimizer':<15}" + "".join(f"{title:>9}" for title in TITLES.split())


def main() -> None:
    """Measures, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(OPTIMIZERS), help="rows")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--timing", action="store_true", help="compile nothing else")
    parser.add_argument("--form", choices=("plain", "blocked"), help="instead of rule")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in OPTIMIZERS]
    if unknown:
        parser.error(f"no optimizer {unknown[0]!r}; there are {', '.join(OPTIMIZERS)}")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command line."""
    big, small = mlp(128, 128, 128), mlp(128)
    transformer = Transformer(width=128, depth=6, base_width=64)
    deep = LanguageModelling(transformer, length=64).specs()
    names = list(dict.fromkeys([*arguments.names, "Adam"]))
    compiled(OPTIMIZERS["Adam"], small)  # what the first compilation alone pays
    form = arguments.form or "auto"
    optimizers = {n: with_execution(OPTIMIZERS[n], form=form) for n in names}
    programs = {name: Stacked(optimizers[name], big) for name in names}
    gflops = interleaved(programs, arguments.repeats)
    adam = statistics.median(programs["Adam"].wall)
    print(HEADER)
    rows = []
    for name in names:
        program = programs[name]
        wall = statistics.median(program.wall)
        rows.append(
            {
                "optimizer": name,
                **(
                    {}
                    if arguments.timing
                    else static_costs(optimizers[name], big, small, deep)
                ),
                "flop_closed": closed_flop(OPTIMIZERS[name]),
                "state_bytes": round(program.state_bytes, 2),
                "bytes_closed": round(12 + 2 * program.state_bytes, 1),
                "temporary_mib": round(program.temporary),
                "wall_ns": round(wall, 2),
                "cpu_ns": round(statistics.median(program.cpu), 2),
                "to_adam": round(wall / adam, 2),
                "form": arguments.form or "by rule",
                "product_gflops": round(gflops, 1),
                **describe_machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
        print(describe(rows[-1]), flush=True)
    print(f"2048³ float32 product of this run: {gflops:.0f} GFLOP/s")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
