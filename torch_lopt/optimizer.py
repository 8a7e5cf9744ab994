"""`LearnedOptimizer`: a meta-trained update rule behind the `torch.optim` interface.

This module keeps parameter groups, lazy state and checkpoints. `small_fc` holds the
mathematics of one tensor, `layout` the meaning of its axes.
"""

import enum
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from torch_lopt import small_fc
from torch_lopt.artifact import check_weights, load_artifact
from torch_lopt.groups import (
    check_group,
    compute_dtype,
    has_dense_gradient,
    names_of,
    shapes_of,
    with_names_apart,
)
from torch_lopt.layout import (
    READOUTS,
    LayoutLike,
    TensorLayout,
    base_shapes,
    canonical_order,
    layouts_of_module,
    step_scale,
)
from torch_lopt.wrappers import (
    Factors,
    Rule,
    ScheduledSteps,
    Wrapper,
    factors,
    length_of_run,
    unwrapped,
)

Params = nn.Module | Iterable[Any]
Base = nn.Module | Mapping[str, Sequence[int]] | None

DECAYS = ("decoupled", "pylo")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU_TILE, DEVICE_TILE = 8192, 2**18


class _Unset(enum.Enum):
    UNSET = "not given"


class LearnedOptimizer(torch.optim.Optimizer):
    """A learned update rule as a `torch.optim.Optimizer`.

    Parameters may be float32, float64, bfloat16 or float16; the state and the
    arithmetic are float32 for the half types. Parameters without gradient and tensors
    without elements are skipped. `lr` multiplies the learned step (1 is what the rule
    was trained for) and may be scheduled. Weight decay is decoupled: with step u and
    μP factor s, `p -= lr * (s * u + weight_decay * p)`, p on the right being the
    parameter before the update. Matrices and embeddings (rank >= 2) decay; a group
    that names its own `weight_decay` decays all its tensors.

    Wrappers of the rule (`WeightDecay`, `ScheduledSteps`) count updates from 0 over
    all tensors, whether or not they had gradients. With a `WeightDecay` of λ inside a
    `ScheduledSteps` of rate r, a matrix moves by
    `p -= lr * (r * (s * u + λ * p) + weight_decay * p)`; with the decay outside, r does
    not multiply λ.
    """

    # Pickles of earlier versions lack these.
    _wrappers: tuple[Wrapper, ...] = ()
    _num_steps: int | None = None
    _updates = 0
    _warned = False

    def __init__(
        self,
        params: Params,
        rule: Rule,
        weights: Mapping[str, torch.Tensor],
        *,
        base: Base | _Unset = _Unset.UNSET,
        layouts: Mapping[str, LayoutLike] | None = None,
        readout: str = "multiplier",
        num_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        decay: str = "decoupled",
    ) -> None:
        """Builds the optimizer; usually called by `from_pretrained`.

        Args:
            params: a module, `model.named_parameters()`, tensors, or groups of them.
            rule: the hyperparameters, in their wrappers.
            weights: the network's float32 tensors, named as in an artifact.
            base: the model at its base width, or name to shape; None says that every
                tensor has its base shape. Must be given if the rule has μP scales, and
                is checked but has no effect if it has not.
            layouts: name to layout (see `layout.canonical_order`) where the rank, or
                the module's type if a module is given, does not tell.
            readout: `"multiplier"` if the model multiplies its readout by base fan-in /
                fan-in, `"step"` if it does not.
            num_steps: updates of the whole run, at least 1. Must be given if the rule's
                schedule depends on it; the schedule stays at its end after them.
            lr: multiplies the learned step.
            weight_decay: decoupled weight decay, per unit of `lr`.
            decay: `"decoupled"`: the decay is not multiplied by the μP factor, so its
                strength does not depend on the width, and `WeightDecay` of the JAX
                library is the same; `"pylo"`: as in PyLO, every tensor decays after
                its step, by `lr * s * weight_decay`.

        Raises:
            ValueError: if an argument is out of range, or does not fit the parameters.
        """
        inner, self._wrappers = unwrapped(rule)
        if inner.rules == "ADAM_LIKE" and base is _Unset.UNSET:
            raise ValueError(
                "this rule has μP step scales: give base= the model at its base width "
                "or its shapes, or None if every tensor has its base shape"
            )
        if readout not in READOUTS:
            raise ValueError(f"readout must be one of {READOUTS}, is {readout!r}")
        if decay not in DECAYS:
            raise ValueError(f"decay must be one of {DECAYS}, is {decay!r}")
        check_weights(weights, inner)
        self._rule = inner
        self._num_steps = length_of_run(num_steps, self._wrappers)
        self._updates = 0
        self._warned = False
        self._weights = {name: w.detach().clone() for name, w in weights.items()}
        self._base = base_shapes(None if isinstance(base, _Unset) else base)
        self._layouts = dict(layouts or {})
        self._readout = readout
        self._decay = decay
        self._tensor_layouts: dict[torch.Tensor, TensorLayout] = {}
        self._networks: dict[tuple[Any, ...], small_fc.Network] = {}
        if isinstance(params, nn.Module):
            self._layouts = layouts_of_module(params) | self._layouts
            params = params.named_parameters()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        names = {name for group in self.param_groups for name in names_of(group)}
        if unknown := sorted(set(layouts or {}) - names):
            raise ValueError(f"layouts given for {unknown}, which are no parameters")

    @classmethod
    def from_pretrained(
        cls,
        params: Params,
        folder: str | os.PathLike[str],
        *,
        base: Base | _Unset = _Unset.UNSET,
        layouts: Mapping[str, LayoutLike] | None = None,
        readout: str = "multiplier",
        num_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        decay: str = "decoupled",
    ) -> "LearnedOptimizer":
        """Builds the optimizer from an artifact folder.

        Args:
            params: a module (its module types then tell the layouts) or
                `model.named_parameters()`.
            folder: with `config.json`, `model.safetensors`, `SHA256SUMS`.
            base: see `__init__`, also for the arguments below.
            layouts: name to layout.
            readout: `"multiplier"` or `"step"`.
            num_steps: updates of the whole run, where a schedule depends on it.
            lr: multiplies the learned step.
            weight_decay: decoupled weight decay, per unit of `lr`.
            decay: `"decoupled"` or `"pylo"`.

        Raises:
            ValueError: if the folder is damaged or not understood, or an argument does
                not fit.
        """
        rule, weights = load_artifact(folder)
        return cls(
            params,
            rule,
            weights,
            base=base,
            layouts=layouts,
            readout=readout,
            num_steps=num_steps,
            lr=lr,
            weight_decay=weight_decay,
            decay=decay,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; `lr` and `weight_decay` may be given in it.

        With a `weight_decay` of its own, vectors and scalars of the group decay too;
        `decay_vectors` says so explicitly.
        """
        for name, wanted in (("decay", f"one of {DECAYS}"), ("num_steps", "the same")):
            if name in param_group:
                raise ValueError(
                    f"{name} = {param_group[name]!r} in a parameter group: {name} is "
                    "an argument of the optimizer and holds for all groups; remove it "
                    f"here and give the optimizer {name}= {wanted}"
                )
        own_decay = "weight_decay" in param_group
        super().add_param_group(with_names_apart(param_group))
        group = self.param_groups[-1]
        group.setdefault("decay_vectors", own_decay)
        try:
            check_group(group)
            self._check_names()
            names = names_of(group)
            layouts = {
                p: self._layout_of(name, p)
                for name, p in zip(names, group["params"], strict=True)
            }
        except Exception:
            self.param_groups.pop()
            raise
        self._tensor_layouts |= layouts

    def _check_names(self) -> None:
        """Refuses two parameters of one name where something is found by names."""
        given = [group.get("param_names") or () for group in self.param_groups]
        names = [name for group in given for name in group]
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice and (self._base is not None or self._layouts.keys() & twice):
            raise ValueError(
                f"two parameters are called {twice[0]!r}: base shapes and layouts are "
                "found by names, so each needs a name of its own"
            )

    def _layout_of(self, name: str, param: torch.Tensor) -> TensorLayout:
        shape = tuple(param.shape)
        if param.dtype not in FLOATS or param.layout != torch.strided:
            raise ValueError(
                f"parameter {name} of shape {shape} is {param.dtype}, {param.layout}: "
                "only dense real floating-point tensors can be optimized"
            )
        order = canonical_order(name, shape, self._layouts.get(name))
        if self._base is None or param.numel() == 0:
            return TensorLayout.of(shape, order)
        if name not in self._base:
            raise ValueError(f"parameter {name} of shape {shape} has no base shape")
        scale = step_scale(name, shape, self._base[name], order, self._readout)
        scaled = self._rule.rules == "ADAM_LIKE"
        return TensorLayout.of(shape, order, scale if scaled else 1.0)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_group(group, tensors=False)
        work = [
            (p, group)
            for group in self.param_groups
            for name, p in zip(names_of(group), group["params"], strict=True)
            if p.numel() > 0 and has_dense_gradient(name, p)
        ]
        biases: dict[tuple[int, int], torch.Tensor] = {}
        now = self._factors()
        for param, group in work:
            self._update(param, group, now, biases)
        self._updates += 1
        return loss

    def _factors(self) -> Factors:
        """Returns what the wrappers make of this step; warns after the run's end."""
        length = self._num_steps
        if length is not None and self._updates >= length and not self._warned:
            self._warned = True
            warnings.warn(
                f"update {self._updates + 1} is beyond num_steps = {length}: the "
                "schedule stays at its end level",
                stacklevel=5,  # through `step` and two decorators of torch
            )
        return factors(self._wrappers, self._updates, length or 1)

    def _update(
        self,
        param: torch.Tensor,
        group: Mapping[str, Any],
        now: Factors,
        biases: dict[tuple[int, int], torch.Tensor],
    ) -> None:
        """Updates one parameter; the tensors of a step share `biases`."""
        assert param.grad is not None
        layout = self._tensor_layouts[param]
        dtype = compute_dtype(param)
        view = layout.view(param).to(dtype)
        state = self.state[param]
        if not state:
            state.update(small_fc.init_state(view, self._rule, layout.largest))
        network = self._network(param.device, dtype, layout.largest is not None)
        lr, decay, late_decay = float(group["lr"]), 0.0, 0.0
        if layout.largest is not None:
            decay = lr * now.decay
        if self._decay == "pylo":
            late_decay = lr * layout.step_scale * group["weight_decay"]
        elif layout.largest is not None or group["decay_vectors"]:
            decay += lr * group["weight_decay"]
        key = (id(network), state["step"])
        if key not in biases:
            biases[key] = small_fc.time_bias(network, self._rule, state["step"])
        small_fc.update_(
            view,
            layout.view(param.grad).to(dtype),
            state,
            self._rule,
            network,
            biases[key],
            largest=layout.largest,
            step_size=lr * now.step * layout.step_scale * self._rule.step_mult,
            decay=decay,
            late_decay=late_decay,
            tile_size=CPU_TILE if param.device.type == "cpu" else DEVICE_TILE,
        )
        layout.write(view, param)
        state["step"] += 1

    def _network(
        self, device: torch.device, dtype: torch.dtype, factored: bool
    ) -> small_fc.Network:
        key = (device, dtype, factored)
        if key not in self._networks:
            weights = {n: w.to(device, dtype) for n, w in self._weights.items()}
            self._networks[key] = small_fc.split_network(self._rule, weights, factored)
        return self._networks[key]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state.

        Every group also holds what is one for all groups: the form of decay, the
        updates done before, and the length of the run, None if no schedule needs it.
        """
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group["decay"] = self._decay
            group["updates"] = self._updates
            group["num_steps"] = self._num_steps
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from `state_dict()`, bit for bit.

        The base class would round the accumulators to the dtype of a half-precision
        parameter; here they stay as they were saved.

        Raises:
            ValueError: if the state is of other shapes, of another form of decay or of
                a run of another length, or a group's `lr` or `weight_decay` is out of
                range.
        """
        for group in state_dict["param_groups"]:
            check_group(group)
            self._check_decay(group)
        updates = self._updates_of(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        states = [state_dict["state"].get(index, {}) for index in saved]
        for param, state in zip(params, states, strict=False):
            self._check_state(param, state)
        decay_vectors = [group["decay_vectors"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        # Checkpoints of earlier versions do not have this key.
        for group, value in zip(self.param_groups, decay_vectors, strict=True):
            group.setdefault("decay_vectors", value)
            for name in ("decay", "updates", "num_steps"):
                group.pop(name, None)
        self._updates = updates
        for param, state in zip(params, states, strict=True):
            dtype = compute_dtype(param)
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    value = value.to(param.device, dtype, copy=True)
                self.state[param][key] = value

    def _check_decay(self, saved: Mapping[str, Any]) -> None:
        """Refuses a saved group of another form of decay than the optimizer's."""
        if "decay" in saved:
            if saved["decay"] != self._decay:
                raise ValueError(
                    f"the saved state has decay = {saved['decay']!r}, the optimizer "
                    f"{self._decay!r}: build it with the decay= of the saved state"
                )
            return
        # States without either key are older than `decay`: only PyLO's form existed.
        old = "decay_vectors" not in saved and saved["weight_decay"] > 0.0
        if old and self._decay != "pylo":
            raise ValueError(
                f"the saved state has weight_decay = {saved['weight_decay']} in form "
                "'pylo', the only one of its version, the optimizer has decay = "
                f"{self._decay!r}: build it with decay='pylo'"
            )

    def _updates_of(self, saved: Mapping[str, Any]) -> int:
        """Returns the updates done before; refuses a run of another length."""
        group = next(iter(saved["param_groups"]), {})
        if "updates" not in group:
            if any(isinstance(w, ScheduledSteps) for w in self._wrappers):
                raise ValueError(
                    "the saved state does not say how many updates were done, as this "
                    "rule's schedule needs: it is of an earlier version, without "
                    "schedules"
                )
            return max((s.get("step", 0) for s in saved["state"].values()), default=0)
        updates, length = group["updates"], group.get("num_steps")
        if isinstance(updates, bool) or not isinstance(updates, int) or updates < 0:
            raise ValueError(
                f"updates of the saved state must be a whole number >= 0, is "
                f"{updates!r:.80}"
            )
        if length != self._num_steps:
            raise ValueError(
                f"the saved state has num_steps = {length!r:.80}, the optimizer "
                f"{self._num_steps}: build it with the rule and the num_steps= of the "
                "saved state"
            )
        return updates

    def _check_state(self, param: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Refuses accumulators of another shape, say of a model of another width."""
        if not state:
            return
        layout = self._tensor_layouts[param]
        view = layout.view(torch.empty(param.shape, device="meta"))
        wanted = shapes_of(small_fc.init_state(view, self._rule, layout.largest))
        if shapes_of(state) != wanted:
            raise ValueError(
                f"saved state of a parameter of shape {tuple(param.shape)} is "
                f"{shapes_of(state)}, must be {wanted}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copies; that of the base class lacks the rule."""
        own = {name: vars(self)[name] for name in _OWN}
        return super().__getstate__() | own | {"_networks": {}}


_OWN = (
    *("_rule", "_weights", "_base", "_layouts", "_readout", "_decay"),
    *("_tensor_layouts", "_wrappers", "_num_steps", "_updates", "_warned"),
)
