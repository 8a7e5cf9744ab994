"""What tasks with a model share: the model's sizes and parameters are the task's."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import jax

from parametrization.rules import Rules
from tasks.base import Batch, Params
from tasks.models.base import Model


class ModelTask(abc.ABC):
    """A task whose parameters are those of a model; subclasses are frozen dataclasses.

    A subclass has the field `model`, says what the model is given and how many outputs
    it has, and calls `check_roles` when it is constructed.
    """

    model: Model

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the model, without the batch."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the model: classes, tokens, pixels."""

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> Any:
        """What the model is given of a batch: `[B, *input_shape]`, or a tree."""

    def check_roles(self) -> None:
        """Raises ValueError naming the first parameter that was given no role."""
        self.specs()

    @property
    def width(self) -> int:
        """Width of the model (see `Task.width`)."""
        return self.model.width

    @property
    def depth(self) -> int:
        """Depth of the model (see `Task.depth`)."""
        return self.model.depth

    def at_width(self, width: int) -> Self:
        """The same data and a model of another width."""
        return self._with(self.model.at_width(width))

    def at_depth(self, depth: int) -> Self:
        """The same data and a model of another depth."""
        return self._with(self.model.at_depth(depth))

    def with_rules(self, rules: Rules) -> Self:
        """The same data and the model in another parametrization."""
        return self._with(self.model.with_rules(rules))

    def _with(self, model: Model) -> Self:
        return dataclasses.replace(self, model=model)  # pyright: ignore

    def init(self, key: jax.Array) -> Params:
        """Initial parameters (see `Task.init`)."""
        return self.model.init(key, self.input_shape, self.num_outputs)

    def specs(self) -> Any:
        """Specs of the parameters (see `Task.specs`)."""
        return self.model.specs(self.input_shape, self.num_outputs)

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """What every layer computes (see `Task.activations`)."""
        return self.model.activations(params, self.inputs(batch), self.num_outputs, key)
