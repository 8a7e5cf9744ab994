"""θ of other libraries, from reference files, and files made of it as they would."""

import numpy as np
import pytest
from flax import serialization

from lopt.release import weights


@pytest.fixture(scope="session")
def foreign(golden):
    """`(file, group) -> arrays by their names there`."""

    def read(name, group="theta"):
        prefix = f"{group}/" if group else ""
        with np.load(golden(f"{name}.npz"), allow_pickle=False) as file:
            return {
                key.removeprefix(prefix): file[key]
                for key in file.files
                if key.startswith(prefix)
            }

    return read


@pytest.fixture
def write(tmp_path):
    """Writes a tree in flax's msgpack form; arrays by name become a nested dict."""

    def make(tensors, wrap=lambda theta: theta):
        path = tmp_path / "theta.state"
        path.write_bytes(serialization.to_bytes(wrap(weights.unflatten(tensors))))
        return path

    return make
