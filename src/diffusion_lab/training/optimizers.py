"""Optimizers: any subclass of torch.optim.Optimizer with its arguments, and the parameter groups that it receives."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

_SAME_MOMENTS = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW")

_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {  # argument: (whether a value is accepted, accepted values)
    "lr": (lambda value: value > 0, "above 0"),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "betas": (lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)"),
}


class OptimizerFactory:
    """A class of optimizers and its arguments, which build the optimizer of a network.

    optimizer_class: a subclass of torch.optim.Optimizer whose step needs no closure. If the class has a static method
        `parameter_groups(network)`, as `Muon` has, the method sorts the parameters of the network into groups.
    lr: learning rate.
    decay_matrices_only: whether the weight decay leaves out norms, biases and embeddings.
    arguments: further arguments of the class. fused=True is used only if the class has a fused kernel for the device.

    Raises ValueError for an optimizer that needs a closure, and for unknown or invalid arguments.

    >>> from diffusion_lab import OptimizerFactory
    >>> factory = OptimizerFactory(torch.optim.AdamW, lr=1e-3, weight_decay=0.01, decay_matrices_only=True)
    >>> optimizer = factory(torch.nn.Linear(3, 2))
    >>> [(list(group["params"][0].shape), group["weight_decay"]) for group in optimizer.param_groups]
    [([2, 3], 0.01), ([2], 0.0)]
    """

    def __init__(
        self, optimizer_class: type[Optimizer], *, lr: float, decay_matrices_only: bool = False, **arguments: Any
    ) -> None:
        self.optimizer_class, self.lr, self.decay_matrices_only = optimizer_class, lr, decay_matrices_only
        self.arguments = {name: _as_tuple(value) for name, value in arguments.items()}
        self._validate()

    def __call__(self, network: nn.Module) -> Optimizer:
        """Return the optimizer of the parameters of a network that require gradients."""
        groups = _trained(getattr(self.optimizer_class, "parameter_groups", _one_group)(network))
        if self.decay_matrices_only:
            decayed = _decayed_parameters(network)
            groups = [part for group in groups for part in _split_by_decay(group, decayed)]
        arguments = self.arguments
        if arguments.get("fused"):
            try:
                self._take_step(arguments, next(network.parameters()).device)
            except RuntimeError:
                arguments = arguments | {"fused": False}  # the device has no fused kernel
        return self._build(groups, arguments)

    @property
    def settings(self) -> str:
        """Text that is equal for equal settings."""
        arguments = {"lr": self.lr, "decay_matrices_only": self.decay_matrices_only, **self.arguments}
        return f"{self.name}({', '.join(f'{name}={arguments[name]!r}' for name in sorted(arguments))})"

    def can_continue(self, name: str) -> bool:
        """Return whether the state of an optimizer class fits this class.  name: import path of the other class."""
        return name == self.name or {name, self.name} <= {*_SAME_MOMENTS}

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names of the arguments of the class, which are keys of its parameter groups."""
        return optimizer_arguments(self.optimizer_class)

    @property
    def name(self) -> str:
        """Import path of the class."""
        return f"{self.optimizer_class.__module__}.{self.optimizer_class.__qualname__}"

    def _build(self, groups: list[dict[str, Any]], arguments: Mapping[str, Any]) -> Optimizer:
        copies: list[Any] = [dict(group) for group in groups]  # torch adds the arguments to the groups
        return cast(Callable[..., Optimizer], self.optimizer_class)(copies, lr=self.lr, **arguments)

    def _take_step(self, arguments: Mapping[str, Any], device: torch.device | str) -> None:
        """Build the optimizer of a small matrix and take a step.  Raises ValueError if it does not call the closure."""
        parameter = Parameter(torch.ones(2, 2, device=device))
        losses: list[float] = []

        def closure() -> float:  # Lightning computes the loss and its gradients in the closure
            losses.append(1.0)
            parameter.grad = torch.ones_like(parameter)
            return losses[-1]

        self._build([{"params": [parameter]}], arguments).step(closure)
        if not losses:
            raise ValueError("its step(closure) must call the closure")

    def _validate(self) -> None:
        """Raise ValueError unless the optimizer can be built and takes a step with the gradient of a small matrix."""
        name = self.optimizer_class.__name__
        for argument, value in {"lr": self.lr, **self.arguments}.items():
            if argument in _LIMITS and not _LIMITS[argument][0](value):
                given = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"{argument} must be {_LIMITS[argument][1]}, got {given}.")
        closure = inspect.signature(self.optimizer_class.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                "`optimizer_class` (optimizer._target_) must be an optimizer whose step needs no closure (such as "
                f"torch.optim.AdamW), got {name}."
            )
        try:
            self._take_step(self.arguments, "cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{name} with these arguments cannot train a network: {reason}.") from error


def optimizer_arguments(optimizer_class: type[Optimizer]) -> tuple[str, ...]:
    """Return the names of the arguments of a class of optimizers, except its parameters."""
    return tuple(name for name in inspect.signature(optimizer_class).parameters if name != "params")


def match_memory_format(optimizer: Optimizer) -> None:
    """Give each moment of the optimizer state the strides of its parameter.

    Moments that are loaded from a checkpoint have the strides that their parameter had when the checkpoint was written,
    but fused kernels read the parameter and its moments as flat arrays of one memory format.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _one_group(network: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(network.parameters())}]


def _trained(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups without frozen parameters, and without groups in which all are frozen."""
    parts = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    return [part for part in parts if part["params"]]


def _decayed_parameters(network: nn.Module) -> set[int]:
    """Return the ids of all weights with at least two dimensions, except those of embeddings."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    return {id(p) for p in network.parameters() if p.ndim >= 2 and id(p) not in embeddings}


def _split_by_decay(group: dict[str, Any], decayed: set[int]) -> list[dict[str, Any]]:
    kept = [p for p in group["params"] if id(p) in decayed]
    others = [p for p in group["params"] if id(p) not in decayed]
    parts = [{**group, "params": kept}, {**group, "params": others, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
