"""θ of google/learned_optimization: checkpoints and files of `save_state`.

A checkpoint `params_N` holds θ under `params`; a checkpoint `checkpoint_N` holds it in
the state of the outer optimizer; `save_state` writes θ itself. Scales of the step stand
in no file, so they are arguments.

References:
    google/learned_optimization at 32186aa: `checkpoints.py`, `outer_train.py`, and the
    modules of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.artifact import Artifact
from lopt.interchange import tables, theta_files
from lopt.interchange.tables import Table
from lopt.interchange.theta_files import Format, count
from lopt.mlp_lopt import MLPLOpt
from lopt.small_fc import SmallFC
from lopt.weights import Tensors

PLACES = (
    (),
    ("params",),
    ("gradient_learner_state", "theta_opt_state", "params"),
)


def load(path: str | Path, **fields: Any) -> Artifact:
    """An optimizer from a checkpoint or a file of `save_state`.

    Args:
        path: the file.
        fields: of our optimizer, beside the sizes that the file tells.

    Raises:
        ValueError: in one line, naming the file and what is wrong.
    """
    return theta_files.load(path, "learned_optimization", FORMATS, PLACES, fields)


def _small_fc(tensors: Tensors, fields: Mapping[str, Any]) -> SmallFC:
    return SmallFC(
        hidden_size=tensors["nn/~/w0"].shape[-1],
        hidden_layers=count(tensors, "nn/~/w{}") - 1,
        **fields,
    )


def _small_fc_table(optimizer: SmallFC) -> Table:
    table = {
        "momentum_offsets": tables.same("momentum_decays"),
        "second_moment_offsets": tables.same("rms_decays"),
        "factored_offsets": tables.same("adafactor_decays"),
    }
    for i in range(optimizer.hidden_layers + 1):
        table |= tables.layer(f"layer_{i}", f"nn/~/w{i}", f"nn/~/b{i}")
    return table


def _mlp_lopt(tensors: Tensors, fields: Mapping[str, Any]) -> MLPLOpt:
    return MLPLOpt(
        hidden_size=tensors["mlp/~/linear_0/w"].shape[-1],
        hidden_layers=count(tensors, "mlp/~/linear_{}/w") - 1,
        **fields,
    )


def _mlp_lopt_table(optimizer: MLPLOpt) -> Table:
    return tables.linear_layers("", "mlp/~/linear", optimizer.hidden_layers + 1)


FORMATS: tuple[Format, ...] = (
    Format("AdafacMLPLOpt", "nn/~/w0", _small_fc, _small_fc_table),
    Format("MLPLOpt", "mlp/~/linear_0/w", _mlp_lopt, _mlp_lopt_table),
)
"""The classes that can be read."""
