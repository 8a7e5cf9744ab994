"""`LearnedOptimizer`: a meta-trained update rule behind the `torch.optim` interface.

This module keeps parameter groups, lazy state and checkpoints. `small_fc` holds the
mathematics of one tensor, `layout` the meaning of its axes.
"""

import enum
import math
import numbers
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from torch_lopt import small_fc
from torch_lopt.artifact import check_weights, load_artifact
from torch_lopt.layout import (
    READOUTS,
    LayoutLike,
    TensorLayout,
    base_shapes,
    canonical_order,
    layouts_of_module,
    step_scale,
)
from torch_lopt.rule import SmallFC

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
    """

    def __init__(
        self,
        params: Params,
        rule: SmallFC,
        weights: Mapping[str, torch.Tensor],
        *,
        base: Base | _Unset = _Unset.UNSET,
        layouts: Mapping[str, LayoutLike] | None = None,
        readout: str = "multiplier",
        lr: float = 1.0,
        weight_decay: float = 0.0,
        decay: str = "decoupled",
    ) -> None:
        """Builds the optimizer; usually called by `from_pretrained`.

        Args:
            params: a module, `model.named_parameters()`, tensors, or groups of them.
            rule: the hyperparameters.
            weights: the network's float32 tensors, named as in an artifact.
            base: the model at its base width, or name to shape; None says that every
                tensor has its base shape. Must be given if the rule has μP scales, and
                is checked but has no effect if it has not.
            layouts: name to layout (see `layout.canonical_order`) where the rank, or
                the module's type if a module is given, does not tell.
            readout: `"multiplier"` if the model multiplies its readout by base fan-in /
                fan-in, `"step"` if it does not.
            lr: multiplies the learned step.
            weight_decay: decoupled weight decay, per unit of `lr`.
            decay: `"decoupled"`: the decay is not multiplied by the μP factor, so its
                strength does not depend on the width, and `WeightDecay` of the JAX
                library is the same; `"pylo"`: as in PyLO, every tensor decays after
                its step, by `lr * s * weight_decay`.

        Raises:
            ValueError: if an argument is out of range, or does not fit the parameters.
        """
        if rule.rules == "ADAM_LIKE" and base is _Unset.UNSET:
            raise ValueError(
                "this rule has μP step scales: give base= the model at its base width "
                "or its shapes, or None if every tensor has its base shape"
            )
        if readout not in READOUTS:
            raise ValueError(f"readout must be one of {READOUTS}, is {readout!r}")
        if decay not in DECAYS:
            raise ValueError(f"decay must be one of {DECAYS}, is {decay!r}")
        check_weights(weights, rule)
        self._rule = rule
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
        names = {name for group in self.param_groups for name in _names(group)}
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
            lr=lr,
            weight_decay=weight_decay,
            decay=decay,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; `lr` and `weight_decay` may be given in it.

        With a `weight_decay` of its own, vectors and scalars of the group decay too;
        `decay_vectors` says so explicitly.
        """
        if "decay" in param_group:
            raise ValueError(
                f"decay = {param_group['decay']!r} in a parameter group: decay is an "
                "argument of the optimizer and holds for all groups; remove it here "
                f"and give the optimizer decay= one of {DECAYS}"
            )
        own_decay = "weight_decay" in param_group
        super().add_param_group(_with_names_apart(param_group))
        group = self.param_groups[-1]
        group.setdefault("decay_vectors", own_decay)
        try:
            _check_group(group)
            self._check_names()
            names = _names(group)
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
            _check_group(group, tensors=False)
        work = [
            (p, group)
            for group in self.param_groups
            for name, p in zip(_names(group), group["params"], strict=True)
            if p.numel() > 0 and _has_dense_gradient(name, p)
        ]
        biases: dict[tuple[int, int], torch.Tensor] = {}
        for param, group in work:
            self._update(param, group, biases)
        return loss

    def _update(
        self,
        param: torch.Tensor,
        group: Mapping[str, Any],
        biases: dict[tuple[int, int], torch.Tensor],
    ) -> None:
        """Updates one parameter; the tensors of a step share `biases`."""
        assert param.grad is not None
        layout = self._tensor_layouts[param]
        dtype = _compute_dtype(param)
        view = layout.view(param).to(dtype)
        state = self.state[param]
        if not state:
            state.update(small_fc.init_state(view, self._rule, layout.largest))
        network = self._network(param.device, dtype, layout.largest is not None)
        lr, decay = float(group["lr"]), 0.0
        step_size = lr * layout.step_scale
        if self._decay == "pylo":
            decay = step_size * group["weight_decay"]
        elif layout.largest is not None or group["decay_vectors"]:
            decay = lr * group["weight_decay"]
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
            step_size=step_size * self._rule.step_mult,
            decay=decay,
            decay_first=self._decay == "decoupled",
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
        """Returns the state; every group also holds the optimizer's form of decay."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group["decay"] = self._decay
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from `state_dict()`, bit for bit.

        The base class would round the accumulators to the dtype of a half-precision
        parameter; here they stay as they were saved.

        Raises:
            ValueError: if the state is of other shapes or of another form of decay, or
                a group's `lr` or `weight_decay` is out of range.
        """
        for group in state_dict["param_groups"]:
            _check_group(group)
            self._check_decay(group)
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
            group.pop("decay", None)
        for param, state in zip(params, states, strict=True):
            dtype = _compute_dtype(param)
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

    def _check_state(self, param: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Refuses accumulators of another shape, say of a model of another width."""
        if not state:
            return
        layout = self._tensor_layouts[param]
        view = layout.view(torch.empty(param.shape, device="meta"))
        wanted = _shapes(small_fc.init_state(view, self._rule, layout.largest))
        if _shapes(state) != wanted:
            raise ValueError(
                f"saved state of a parameter of shape {tuple(param.shape)} is "
                f"{_shapes(state)}, must be {wanted}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copies; that of the base class lacks the rule."""
        own = {name: vars(self)[name] for name in _OWN}
        return super().__getstate__() | own | {"_networks": {}}


_OWN = (
    *("_rule", "_weights", "_base", "_layouts", "_readout", "_decay"),
    "_tensor_layouts",
)


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}


def _with_names_apart(group: dict[str, Any]) -> dict[str, Any]:
    """Returns the group with (name, parameter) pairs as `param_names` and `params`.

    torch.optim takes such pairs since 2.6, and then does the same.
    """
    params = group["params"]
    if isinstance(params, torch.Tensor | set):
        return group
    params = list(params)
    if not params or not all(isinstance(p, tuple) and len(p) == 2 for p in params):
        return group | {"params": params}
    names, tensors = zip(*params, strict=True)
    return group | {"params": list(tensors), "param_names": list(names)}


def _names(group: Mapping[str, Any]) -> Sequence[str]:
    """Returns the names of a group's parameters, or numbers if it has none."""
    count = len(group["params"])
    return group.get("param_names") or [f"number {i}" for i in range(count)]


def _compute_dtype(param: torch.Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _check_group(group: Mapping[str, Any], tensors: bool = True) -> None:
    """Checks the rates; those in tensors only on request, since it synchronizes."""
    for key in ("lr", "weight_decay"):
        value: Any = group.get(key)
        if isinstance(value, torch.Tensor):
            if not tensors:
                continue
            valid = value.numel() == 1 and not value.is_complex()
        else:
            valid = isinstance(value, numbers.Real)
        if not valid or not 0.0 <= float(value) < math.inf:
            shown = " ".join(repr(value).split())
            raise ValueError(f"{key} must be a number >= 0 and finite, is {shown}")


def _has_dense_gradient(name: str, param: torch.Tensor) -> bool:
    if param.grad is None:
        return False
    if param.grad.layout != torch.strided:
        raise ValueError(
            f"parameter {name} of shape {tuple(param.shape)} has a sparse gradient: "
            "only dense gradients can be used"
        )
    return True
