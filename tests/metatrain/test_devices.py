"""Particles shared by devices: the same bits, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lopt.baselines import Adam
from metatrain import devices
from metatrain.estimators.particles import over_particles
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from tasks.synthetic.quadratics import Quadratic

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("run_on_devices.py")
TIMEOUT = 280  # seconds; far more than any of these needs on an idle machine


def start(where, case, *sizes):
    """A process of its own, since JAX has one number of devices in a process."""
    command = [sys.executable, str(WORKER), where, case, *map(str, sizes)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def result(process):
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["unusable donations"] == []
    return found["runs"]


def run(where, case, *sizes):
    return result(start(where, case, *sizes))


def check_same(want, got, num):
    """Same bytes of θ, of the whole state and of metrics, really on `num` devices."""
    for name in ("theta", "state", "metrics"):
        assert got[name] == want[name], name
    assert got["devices of a particle array"] == [num]
    assert got["compiled later"] == 0
    assert sum(want["finished"]) > 0.0  # episodes ended, and others began
    assert len(set(want["each theta"])) == len(want["each theta"])  # θ moved


def test_two_devices_give_the_bits_of_one():
    runs = run("2", "quick", 0, 2)
    check_same(runs["0"], runs["2"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("num", [4, 8])
def test_more_devices_give_the_bits_of_one(num):
    check_same(run("1", "quick", 0)["0"], run(str(num), "quick", num)[str(num)], num)


@pytest.mark.optimized
@pytest.mark.parametrize("case", ["network", "streamed", "groups"])
def test_what_is_learned_on_two_devices_has_the_bits_of_one(case):
    runs = run("2", case, 0, 2)
    check_same(runs["0"], runs["2"], 2)


@pytest.mark.optimized
def test_two_processes_give_the_bits_of_one():
    from experiments.hosts import free_port

    where = f"127.0.0.1:{free_port()}"
    both = [start(f"{where},2,{index}", "streamed", 2) for index in range(2)]
    try:
        found = [result(process) for process in both]
    finally:
        for process in both:
            process.kill()
    want = run("1", "streamed", 0)["0"]
    for got in found:
        check_same(want, got["2"], 2)


@pytest.mark.slow
def test_a_sum_over_devices_is_that_in_order_but_for_rounding():
    runs = run("2", "summed", 0, 2)
    ordered, summed = runs["0"], runs["2"]
    # Before θ has moved, every particle is where it is without a mesh.
    assert summed["first particles"] == ordered["first particles"]
    want, got = (np.array(r["first gradient"]) for r in (ordered, summed))
    magnitudes = np.array(ordered["mean magnitude of a term"])
    np.testing.assert_array_less(np.abs(got - want), 8 * 2.0**-23 * magnitudes)
    assert summed["terms"] is False and ordered["terms"] is True


def mesh_of(num):
    """A mesh that says it has `num` devices; nothing can run on it."""
    return Mesh(np.array(jax.devices() * num), (devices.AXIS,))


@pytest.mark.parametrize(("num_chunks", "num"), [(4, 3), (1, 2), (6, 4)])
def test_chunks_that_do_not_fit_the_devices_are_refused(num_chunks, num):
    with pytest.raises(ValueError) as error:
        devices.check_shares(num_chunks, num)
    message = str(error.value)
    chunks = "1 chunk" if num_chunks == 1 else f"{num_chunks} chunks"
    assert f"{chunks} of particles cannot be shared by {num} devices" in message
    fitting = [n for n in range(1, num_chunks + 1) if num_chunks % n == 0]
    assert f"take {' or '.join(map(str, fitting))}, or" in message


@pytest.mark.parametrize(
    ("num_chunks", "most", "largest"),
    [(4, 3, 2), (6, 4, 3), (5, 4, 1), (2, 8, 2), (1, 8, 1), (12, 12, 12)],
)
def test_the_largest_number_of_devices_that_can_share(num_chunks, most, largest):
    assert devices.largest_share(num_chunks, most) == largest
    devices.check_shares(num_chunks, largest)


def test_they_are_refused_before_anything_is_computed():
    task, lopt = Quadratic(2), Adam(0.1)
    groups = (ProblemGroup("task", InnerTraining(task, lopt, Objective())),)
    es = PES(num_pairs=4, chunk=2)
    with pytest.raises(ValueError, match="2 chunks of particles cannot be shared by 3"):
        MetaTraining(groups, lopt, es, OuterOptimizer(), 5, mesh=mesh_of(3))
    with pytest.raises(ValueError, match="reduce = 'sum' must be one of ordered, psum"):
        PES(reduce="sum")


def test_a_mesh_has_what_the_backend_has():
    here = jax.local_device_count()
    assert devices.make_mesh(1) is None
    with pytest.raises(ValueError, match=f"devices = {here + 1}: .* has {here} for"):
        devices.make_mesh(here + 1)
    assert devices.own_part(6, None) == range(0, 6, 6)


def test_without_a_mesh_nothing_moves():
    tree = {"x": jnp.arange(3.0), "key": jax.random.key(1)}
    for move in (devices.replicate, devices.shard, devices.gather, devices.on_first):
        assert move(tree, None) is tree
    assert devices.broadcast(tree) is tree
    assert devices.local(tree)["x"] is tree["x"]


def work(shared, particle):
    x, index = particle
    return {"own": x * shared + index}, jnp.sin(x) * shared


@pytest.mark.parametrize("chunk", [1, 2, 6, 9])
def test_particles_run_in_chunks_each_once_and_in_place(chunk):
    # Whole numbers: what is not summed is exact.
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (6, 3)), jnp.float32)
    shared = jnp.asarray([1.0, -2.0, 3.0])
    particles = (x, jnp.arange(6))
    kept, terms = jax.jit(lambda s, p: over_particles(work, s, p, chunk=chunk))(
        shared, particles
    )
    want = np.asarray(x) * np.asarray(shared) + np.arange(6)[:, None]
    np.testing.assert_array_equal(kept["own"], want)
    again, total = jax.jit(
        lambda s, p: over_particles(work, s, p, chunk=chunk, reduce="psum")
    )(shared, particles)
    np.testing.assert_array_equal(again["own"], kept["own"])
    exact = np.sum(np.asarray(terms, np.float64), axis=0)
    bound = 6 * 2.0**-23 * np.abs(terms).sum(axis=0)
    np.testing.assert_array_less(np.abs(total - exact), bound)


def test_a_loop_of_one_chunk_stays_a_loop():
    x = (jnp.ones((4, 3)), jnp.arange(4))
    for chunk, rounds in ((4, 1), (2, 2)):
        run = jax.jit(lambda s, p, c=chunk: over_particles(work, s, p, chunk=c))
        text = run.lower(jnp.ones(3), x).compile().as_text()
        assert text.count(" while(") == 1, f"{rounds} rounds"
