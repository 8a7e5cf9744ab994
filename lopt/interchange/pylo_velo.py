"""VeLO of PyLO: a folder for the bank of networks and one for the scheduler.

PyLO also stores the network that was mixed last and a layer of the scheduler whose
output is not used; both must be present and are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.interchange import tables
from lopt.interchange.pylo import check_config, configured, read_config, source, write
from lopt.interchange.tables import Source, Table, layer, same
from lopt.learned.velo import VeLO
from lopt.release import weights
from lopt.release.artifact import CONFIG, WEIGHTS, Artifact
from lopt.release.weights import Shapes, Tensors

_OUTPUTS = 3
_MLP: dict[str, type] = dict.fromkeys(
    ("hidden_layers", "hidden_size", "input_size", "output_size", "param_inits"), int
)
_RNN: dict[str, type] = {
    **dict.fromkeys(("input_size", "lstm_hidden_size", "param_inits"), int),
    "mix_layers": bool,
}


def load(mlp: str | Path, rnn: str | Path, **fields: Any) -> Artifact:
    """Reads VeLO from the folders of a `VeLOMLP` and of a `VeLORNN`.

    Args:
        mlp: folder of the bank, as Pauljanson002/VeLO_MLP.
        rnn: folder of the scheduler, as Pauljanson002/VeLO_RNN.
        fields: fields of our `VeLO` other than the sizes.

    Raises:
        ValueError: naming the file and the entry that is missing, unknown or wrong.
    """
    mlp, rnn = Path(mlp), Path(rnn)
    bank, scheduler = read_config(mlp, _MLP), read_config(rnn, _RNN)
    sizes = {
        "ff_hidden_size": bank["hidden_size"],
        "ff_hidden_layers": bank["hidden_layers"] + 1,
        "param_inits": bank["param_inits"],
        "lstm_hidden_size": scheduler["lstm_hidden_size"],
    }
    optimizer = configured(VeLO, sizes | fields, mlp)
    check_config(bank, _mlp_config(optimizer), mlp / CONFIG)
    check_config(scheduler, _rnn_config(optimizer), rnn / CONFIG)
    shapes = weights.expected_shapes(optimizer)
    theta: dict[str, Any] = {}
    for folder, part, table, unused in (
        (mlp, "bank", _mlp_table(optimizer), _mlp_unused(optimizer)),
        (rnn, "scheduler", _rnn_table(), _rnn_unused(optimizer)),
    ):
        ours = {n: s for n, s in shapes.items() if n.startswith(f"{part}/")}
        path = folder / WEIGHTS
        theta |= tables.to_theta(weights.read(path), table, ours, path, unused)
    return Artifact(optimizer, theta, provenance=source(mlp, "VeLOMLP, VeLORNN"))


def save(
    artifact: Artifact, mlp: str | Path, rnn: str | Path, *, replace: bool = False
) -> None:
    """Writes both folders; ignored tensors are zero.

    Raises:
        ValueError: if the optimizer is no VeLO, or θ does not fit it.
        FileExistsError: if a folder exists and `replace` is False.
    """
    if Path(mlp).absolute() == Path(rnn).absolute():
        raise ValueError(f"{mlp} cannot be both folders: bank and scheduler need two")
    for folder in (Path(mlp), Path(rnn)):
        if os.path.lexists(folder) and not replace:
            raise FileExistsError(f"{folder} exists already; nothing was written")
    optimizer = artifact.optimizer
    if not isinstance(optimizer, VeLO):
        raise ValueError(f"PyLO has no VeLO of a {type(optimizer).__name__}")
    theta = weights.check_theta(optimizer, artifact.theta)
    bank = tables.from_theta(theta, _mlp_table(optimizer), _mlp_unused(optimizer))
    scheduler = tables.from_theta(theta, _rnn_table(), _rnn_unused(optimizer))
    parts: tuple[tuple[Path, Tensors, Mapping[str, Any]], ...] = (
        (Path(mlp), bank, _mlp_config(optimizer)),
        (Path(rnn), scheduler, _rnn_config(optimizer)),
    )
    for folder, tensors, config in parts:
        write(folder, tensors, config, replace)


def _mlp_config(optimizer: VeLO) -> dict[str, Any]:
    return {
        "hidden_layers": optimizer.ff_hidden_layers - 1,
        "hidden_size": optimizer.ff_hidden_size,
        "input_size": len(optimizer.rule.feature_names),
        "output_size": _OUTPUTS,
        "param_inits": optimizer.param_inits,
    }


def _rnn_config(optimizer: VeLO) -> dict[str, Any]:
    return {
        "input_size": optimizer.scheduler.num_inputs,
        "lstm_hidden_size": optimizer.lstm_hidden_size,
        "mix_layers": True,
        "param_inits": optimizer.param_inits,
    }


def _layer_names(optimizer: VeLO) -> list[tuple[str, str]]:
    """Returns kernel and bias of each layer of the network that was mixed last."""
    hidden = range(optimizer.ff_hidden_layers - 1)
    middle = [(f"hidden_weights.{i}", f"hidden_bias.{i}") for i in hidden]
    ends = [("input_weights", "input_bias"), ("output_weights", "output_bias")]
    return [ends[0], *middle, ends[1]]


def _stored(name: str) -> str:
    """Returns the name of the same part of the bank."""
    stem, dot, number = name.partition(".")
    return f"{stem}_{dot}{number}"


def _mlp_table(optimizer: VeLO) -> Table:
    table: dict[str, Source] = {}
    for i, (kernel, bias) in enumerate(_layer_names(optimizer)):
        names = _stored(kernel), _stored(bias)
        table |= layer(f"bank/layer_{i}", *names, transposed=True)
    return table


def _mlp_unused(optimizer: VeLO) -> Shapes:
    hidden = [optimizer.ff_hidden_size] * optimizer.ff_hidden_layers
    sizes = [len(optimizer.rule.feature_names), *hidden, _OUTPUTS]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (kernel, bias) in enumerate(_layer_names(optimizer)):
        shapes |= {kernel: (sizes[i + 1], sizes[i]), bias: (sizes[i + 1],)}
    return shapes


def _rnn_table() -> Table:
    table = {
        "scheduler/lstm/hidden": same("lstm_init_state.0", leading_one=True),
        "scheduler/lstm/cell": same("lstm_init_state.1", leading_one=True),
    }
    for ours, theirs in {
        "exchange": "mix_layer2",
        "inputs": "final_mix_layer",
        "lstm": "lstm.linear",
        "controls": "rnn_to_controls",
        "step": "step_size",
    }.items():
        kernel, bias = f"{theirs}.weight", f"{theirs}.bias"
        table |= layer(f"scheduler/{ours}", kernel, bias, transposed=True)
    return table


def _rnn_unused(optimizer: VeLO) -> Shapes:
    size = optimizer.lstm_hidden_size
    return {
        "mix_layer1.weight": (size, optimizer.scheduler.num_inputs),
        "mix_layer1.bias": (size,),
    }
