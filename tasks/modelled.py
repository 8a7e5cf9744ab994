"""Tasks with a model: its sizes and parameters are those of the task."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import jax

from parametrization.rules import ReadoutInit, Rules
from tasks.base import BaseTask, Batch, Params, initial_loss
from tasks.models.base import Model


class ModelTask(BaseTask):
    """A task whose parameters are those of a model.

    A subclass has the field `model`, defines the three abstract methods below, and
    calls `check_roles` when it is constructed.
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
        """Returns the model's inputs: `[B, *input_shape]`, or a tree."""

    def check_roles(self) -> None:
        """Raises ValueError naming the first parameter that was given no role."""
        self.specs()

    @property
    def width(self) -> int:
        """Width of the model."""
        return self.model.width

    @property
    def depth(self) -> int:
        """Depth of the model."""
        return self.model.depth

    @property
    def family(self) -> str:
        """Class of the model."""
        return type(self.model).__name__

    @property
    def resolution(self) -> str:
        """Size of one input (see `Task.resolution`)."""
        return "×".join(map(str, self.input_shape))

    def at_width(self, width: int) -> Self:
        """Returns the same data with a model of another width."""
        return self._with(self.model.at_width(width))

    def at_depth(self, depth: int) -> Self:
        """Returns the same data with a model of another depth."""
        return self._with(self.model.at_depth(depth))

    def with_rules(self, rules: Rules) -> Self:
        """Returns the same data with the model in another parametrization."""
        return self._with(self.model.with_rules(rules))

    def with_readout_init(self, readout_init: ReadoutInit) -> Self:
        """Returns the same data with other initial readouts of the model."""
        return self._with(self.model.with_readout_init(readout_init))

    @property
    def loss_at_chance(self) -> float:
        """The loss at initialization from zero readouts, averaged over 64 keys."""
        return initial_loss(self.with_readout_init("zero"))

    def _with(self, model: Model) -> Self:
        return dataclasses.replace(self, model=model)

    def init(self, key: jax.Array) -> Params:
        """Returns initial parameters of the model."""
        return self.model.init(key, self.input_shape, self.num_outputs)

    def specs(self) -> Any:
        """Returns the specs of the model's parameters."""
        return self.model.specs(self.input_shape, self.num_outputs)

    def activations(
        self, params: Params, key: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns the outputs of every layer of the model by name."""
        return self.model.activations(params, self.inputs(batch), self.num_outputs, key)
