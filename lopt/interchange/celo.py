"""θ of amoudgl/celo: the file `theta.state` in flax's msgpack form.

References:
    Moudgil et al., Celo, arXiv:2501.12670, and Celo2, arXiv:2602.19142; amoudgl/celo at
    66d9761.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopt.interchange import tables, theta_files
from lopt.interchange.tables import Table
from lopt.interchange.theta_files import Format, count
from lopt.learned.celo import Celo
from lopt.learned.celo2 import Celo2
from lopt.learned.celo_adam import CeloAdam
from lopt.release.artifact import Artifact
from lopt.release.weights import Shapes, Tensors


def load(path: str | Path, **fields: Any) -> Artifact:
    """Reads an optimizer from `theta.state` (see `theta_files.load`)."""
    return theta_files.load(path, "celo", FORMATS, fields)


def _celo2(tensors: Tensors, fields: Mapping[str, Any]) -> Celo2:
    return Celo2(
        hidden_size=tensors["ff_mod_stack/~/b0"].shape[-1],
        hidden_layers=count(tensors, "ff_mod_stack/~/b{}") - 1,
        **fields,
    )


def _celo2_table(optimizer: Celo2) -> Table:
    layers, decays = optimizer.hidden_layers + 1, len(optimizer.momentum_decays)
    return tables.split_network("", "ff_mod_stack/~", layers, decays)


def _celo(tensors: Tensors, fields: Mapping[str, Any]) -> Celo:
    bank = tensors["ff_mod_stack/~/b0"].shape[0]
    if bank != 1:
        raise ValueError(f"its bank holds {bank} networks, must hold one")
    return Celo(
        lstm_hidden_size=tensors["lstm_init_state/hidden"].shape[-1],
        ff_hidden_size=tensors["ff_mod_stack/~/b0"].shape[-1],
        ff_hidden_layers=count(tensors, "ff_mod_stack/~/b{}") - 1,
        **fields,
    )


def _celo_table(optimizer: Celo) -> Table:
    layers, decays = optimizer.ff_hidden_layers + 1, len(optimizer.momentum_decays)
    rule = tables.split_network(
        *("rule/", "ff_mod_stack/~", layers, decays), leading_one=True
    )
    return {**tables.scheduler(bank=False), **rule}


def _celo_unused(optimizer: Celo) -> Shapes:
    # The mixing weight of a single network is always 1.
    size = optimizer.lstm_hidden_size
    return {
        **tables.unused_layer(optimizer),
        "rnn_params/rnn_to_controls/w": (size, 1),
        "rnn_params/rnn_to_controls/b": (1,),
    }


def _celo_adam(tensors: Tensors, fields: Mapping[str, Any]) -> CeloAdam:
    hidden_size = tensors["lstm_init_state/hidden"].shape[-1]
    return CeloAdam(lstm_hidden_size=hidden_size, **fields)


def _celo_adam_table(optimizer: CeloAdam) -> Table:
    del optimizer
    return tables.scheduler(bank=False)


_MARK = "rnn_params/rnn_to_controls/b"
"""A tensor of Celo that CELO2 and Celo-Adam lack."""

FORMATS: tuple[Format, ...] = (
    Format("Celo", _MARK, Celo, _celo, _celo_table, _celo_unused),
    Format(
        *("Celo-Adam", "rnn_params/step_size/b", CeloAdam),
        *(_celo_adam, _celo_adam_table, tables.unused_layer),
    ),
    Format("Celo2", "ff_mod_stack/~/b0", Celo2, _celo2, _celo2_table),
)
"""Readable classes."""
