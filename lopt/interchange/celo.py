"""θ of amoudgl/celo: `theta.state`, flax's msgpack form of arrays.

References:
    Moudgil et al., Celo, arXiv:2501.12670, and Celo2, arXiv:2602.19142; amoudgl/celo at
    66d9761.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.artifact import Artifact
from lopt.celo2 import Celo2
from lopt.interchange import tables, theta_files
from lopt.interchange.tables import Table
from lopt.interchange.theta_files import Format, count
from lopt.weights import Tensors

PLACES = ((), ("params",), ("gradient_learner_state", "theta_opt_state", "params"))


def load(path: str | Path, **fields: Any) -> Artifact:
    """An optimizer from `theta.state`.

    Args:
        path: the file.
        fields: of our optimizer, beside the sizes that the file tells.

    Raises:
        ValueError: in one line, naming the file and what is wrong.
    """
    return theta_files.load(path, "celo", FORMATS, PLACES, fields)


def _celo2(tensors: Tensors, fields: Mapping[str, Any]) -> Celo2:
    return Celo2(
        hidden_size=tensors["ff_mod_stack/~/b0"].shape[-1],
        hidden_layers=count(tensors, "ff_mod_stack/~/b{}") - 1,
        **fields,
    )


def _celo2_table(optimizer: Celo2) -> Table:
    layers, decays = optimizer.hidden_layers + 1, len(optimizer.momentum_decays)
    return tables.split_network("", "ff_mod_stack/~", layers, decays)


FORMATS: tuple[Format, ...] = (
    Format("Celo2", "ff_mod_stack/~/b0", Celo2, _celo2, _celo2_table),
)
"""The classes that can be read."""
