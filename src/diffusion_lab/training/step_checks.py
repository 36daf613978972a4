"""Checks of what own networks and callbacks pass to a training step: the loss and the logged metrics."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.contracts import described
from diffusion_lab.errors import ArgumentError


def require_gradient(loss: Tensor, network: nn.Module) -> Tensor:
    """Return a loss.  Raises ArgumentError if it does not depend on the trained parameters of the network."""
    if loss.requires_grad or not torch.is_grad_enabled():
        return loss
    raise ArgumentError(without_gradient(network, "the loss"))


def without_gradient(network: nn.Module, result: str) -> str:
    """Return the error message for a result of a network that does not depend on its trained parameters."""
    num_trained = sum(parameter.requires_grad for parameter in network.parameters())
    found = "of which none has requires_grad=True" if not num_trained else "of which it uses none with a gradient"
    return (
        f"{result} must depend on the parameters of {type(network).__name__}, {found}; compute its output from them "
        "without torch.no_grad() and .detach()."
    )


def as_scalar(name: str, value: Any) -> Tensor:
    """Return a logged value as a tensor with one element.  Raises ArgumentError for any other value."""
    if torch.is_tensor(value):
        scalar: Tensor = value
    else:
        try:
            scalar = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentError(f"log_step must receive a number for {name}, got {described(value)}.") from None
    if scalar.numel() != 1:
        raise ArgumentError(
            f"log_step must receive one number for {name}, got a tensor of the shape {list(scalar.shape)}; log its "
            "mean, value.mean(), or each element by its own name."
        )
    return scalar
