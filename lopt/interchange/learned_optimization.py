"""θ of google/learned_optimization: checkpoints and files of `save_state`.

A checkpoint `params_N` holds θ under `params`, `checkpoint_N` in the state of the outer
optimizer; `save_state` writes θ itself. No file holds scales of the step: they are
arguments.

References:
    google/learned_optimization at 32186aa: `checkpoints.py`, `outer_train.py`, and the
    modules of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.interchange import tables, theta_files
from lopt.interchange.tables import Table
from lopt.interchange.theta_files import Format, count
from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.nn_adam import NNAdam
from lopt.learned.rnn_mlp import RNNMLP
from lopt.learned.small_fc import SmallFC
from lopt.learned.velo import VeLO
from lopt.release.artifact import Artifact
from lopt.release.weights import Tensors


def load(path: str | Path, **fields: Any) -> Artifact:
    """Reads a checkpoint or a file of `save_state` (see `theta_files.load`)."""
    return theta_files.load(path, "learned_optimization", FORMATS, fields)


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


def _learnable(mark: str, kind: type[Any], **names: str) -> Format:
    """Returns the format of a class whose θ is a scalar for each of `names`."""
    table = {ours: tables.same(theirs) for ours, theirs in names.items()}
    return Format(
        kind.__name__, mark, kind, lambda _, fields: kind(**fields), lambda _: table
    )


def _nn_adam(tensors: Tensors, fields: Mapping[str, Any]) -> NNAdam:
    hidden_size = tensors["lstm_init_state/hidden"].shape[-1]
    return NNAdam(hidden_size=hidden_size, **fields)


def _nn_adam_table(optimizer: NNAdam) -> Table:
    del optimizer
    names = {"learning_rate": "lr", "b1": "beta1", "b2": "beta2", "epsilon": "epsilon"}
    controls = "rnn_to_controls_params/rnn_to_controls"
    return {
        **tables.lstm_cell("lstm", "rnn_params/rnn/linear", "lstm_init_state"),
        **tables.layer("controls", f"{controls}/w", f"{controls}/b"),
        **{
            f"hyperparameters/{ours}": tables.same(f"per_layer_{name}")
            for ours, name in names.items()
        },
    }


_MLP = "ffmod_params/mlp/~/linear"


def _rnn_mlp(tensors: Tensors, fields: Mapping[str, Any]) -> RNNMLP:
    return RNNMLP(
        hidden_size=tensors[f"{_MLP}_0/w"].shape[-1],
        hidden_layers=count(tensors, _MLP + "_{}/w") - 1,
        network_to_lstm=tensors["initial_from_mlp"].shape[-1],
        lstm_to_lstm=tensors["initial_from_lstm"].shape[-1],
        lstm_to_network=tensors["rnn_to_ff_params/rnn_to_ff/b"].shape[-1],
        lstm_size=tensors["lstm_init_state/hidden"].shape[-1],
        **fields,
    )


def _rnn_mlp_table(optimizer: RNNMLP) -> Table:
    to_network, to_tensors = "rnn_to_ff_params/rnn_to_ff", "rnn_to_in_params/rnn_to_in"
    return {
        **tables.linear_layers("", _MLP, optimizer.hidden_layers + 1),
        **tables.lstm_cell("lstm", "rnn_params/rnn/linear", "lstm_init_state"),
        **tables.layer("to_network", f"{to_network}/w", f"{to_network}/b"),
        **tables.layer("to_tensors", f"{to_tensors}/w", f"{to_tensors}/b"),
        "from_network": tables.same("initial_from_mlp"),
        "from_tensors": tables.same("initial_from_lstm"),
    }


def _velo(tensors: Tensors, fields: Mapping[str, Any]) -> VeLO:
    return VeLO(
        lstm_hidden_size=tensors["lstm_init_state/hidden"].shape[-1],
        ff_hidden_size=tensors["ff_mod_stack/~/b0"].shape[-1],
        ff_hidden_layers=count(tensors, "ff_mod_stack/~/b{}") - 1,
        param_inits=tensors["ff_mod_stack/~/b0"].shape[0],
        **fields,
    )


def _velo_table(optimizer: VeLO) -> Table:
    layers, decays = optimizer.ff_hidden_layers + 1, len(optimizer.momentum_decays)
    bank = tables.split_network("bank/", "ff_mod_stack/~", layers, decays)
    return {**tables.scheduler(bank=True), **bank}


FORMATS: tuple[Format, ...] = (
    Format("AdafacMLPLOpt", "nn/~/w0", SmallFC, _small_fc, _small_fc_table),
    Format("MLPLOpt", "mlp/~/linear_0/w", MLPLOpt, _mlp_lopt, _mlp_lopt_table),
    Format("NNAdam", "per_layer_lr", NNAdam, _nn_adam, _nn_adam_table),
    Format(
        "HyperV2", "ff_mod_stack/~/w0__0", VeLO, _velo, _velo_table, tables.unused_layer
    ),
    Format("RNNMLPLOpt", f"{_MLP}_0/w", RNNMLP, _rnn_mlp, _rnn_mlp_table),
    _learnable(
        "log_epsilon",
        LearnableAdam,
        log_learning_rate="log_lr",
        log_b1_complement="one_minus_beta1",
        log_b2_complement="one_minus_beta2",
        log_eps="log_epsilon",
    ),
    _learnable(
        "one_minus_momentum",
        LearnableSGDM,
        log_learning_rate="log_lr",
        log_momentum_complement="one_minus_momentum",
    ),
    _learnable("log_lr", LearnableSGD, log_learning_rate="log_lr"),
)
"""Readable classes; a format is found by its mark, so the order matters."""
