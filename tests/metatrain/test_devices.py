"""Devices that share particles: the same bits, or a clear refusal."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from metatrain import devices
from metatrain.estimators.es import EvolutionStrategy


def test_two_devices_have_the_bits_of_one():
    process = subprocess.run(
        [sys.executable, "-m", "tests.metatrain.two_devices"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert process.returncode == 0, process.stderr
    alone, shared = process.stdout.split()
    assert re.fullmatch("[0-9a-f]{64}", alone)
    assert alone == shared


def test_devices_must_divide_the_chunks():
    (device,) = jax.devices()[:1]
    mesh = Mesh(np.array([device]), (devices.AXIS,))
    devices.check_shares(3, mesh)
    several = type("Several", (), {"size": 2})()
    with pytest.raises(
        ValueError, match=r"3 chunks of particles.*2 devices: take 1 or"
    ):
        devices.check_shares(3, several)
    assert EvolutionStrategy(num_pairs=6, chunk=2).num_chunks == 3
    assert EvolutionStrategy(num_pairs=6, chunk=6).num_chunks == 1


def test_more_devices_than_there_are_cannot_be_had():
    number = len(jax.devices())
    with pytest.raises(ValueError, match=rf"devices = {number + 1}.* has {number} "):
        devices.make_mesh(number + 1)
