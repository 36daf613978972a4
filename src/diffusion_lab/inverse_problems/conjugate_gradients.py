"""Conjugate gradients for one linear system per image."""

from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]
"""Product of a symmetric positive semi-definite matrix of each image with a vector of each image: [B, ...]."""


def conjugate_gradients(apply: Apply, right_side: Tensor, num_iterations: int) -> Tensor:
    """Return the approximate solution of apply(v) = right_side of each image, in the shape of right_side, [B, ...].

    Hestenes & Stiefel (1952), started from v = 0, with a fixed number of iterations. The iterations of an image stop
    when its residual has reached the rounding error, and if its matrix is not positive along the search direction, as
    for the Jacobian of a network. Both are decided for each image alone, so that the solution for an image does not
    depend on the other images of its batch. No product is computed after the iterations of all images have stopped.
    """
    solution, residual = torch.zeros_like(right_side), right_side
    direction, squared = residual, _inner(residual, residual)
    smallest = squared * (10 * torch.finfo(squared.dtype).eps) ** 2
    for _ in range(num_iterations):
        if not bool((squared > smallest).any()):
            break
        product = apply(direction)
        curvature = _inner(direction, product)
        active = (curvature > 0) & (squared > smallest)
        step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0)
        solution = solution + step * direction
        residual = residual - step * product
        previous, squared = squared, _inner(residual, residual)
        direction = residual + torch.where(active, squared / torch.where(active, previous, 1.0), 0.0) * direction
        squared = torch.where(active, squared, 0.0)  # an image whose iterations have stopped is not changed again
    return solution


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner product of each image: [B, 1, ...]."""
    products = (first * second).flatten(1).sum(dim=1)
    return products.view(-1, *[1] * (first.ndim - 1))
