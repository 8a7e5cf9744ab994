"""Every learned optimizer by the name of its class.

A new optimizer is added to `AnyLearned`, and is then read and written by artifacts, run
directories and command lines. Dataclasses that fields of optimizers
hold need no entry, unless a field may hold one of several.
"""

from __future__ import annotations

from typing import TypeAlias, get_args

from lopt import encoding
from lopt.celo2 import Celo2
from lopt.elo import ELO
from lopt.mlp_lopt import MLPLOpt
from lopt.nominal import Nominal
from lopt.small_fc import SmallFC

AnyLearned: TypeAlias = SmallFC | MLPLOpt | Celo2 | ELO | Nominal
"""Every learned optimizer, as a type for fields that hold one."""

LEARNED: tuple[type, ...] = get_args(AnyLearned)
"""The same as classes."""

COMPONENTS: tuple[type, ...] = ()
"""Dataclasses that are no optimizers, where a field may hold one of several."""

KINDS = encoding.kinds_of(*LEARNED, *COMPONENTS)
"""What `kind` in a stored optimizer may be."""
