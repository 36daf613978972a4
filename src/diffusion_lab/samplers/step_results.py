"""Checks of the values that the methods of a `FixedStepSampler` return, which may be of another package."""

from typing import Any

from torch import Tensor, is_tensor


class StepResultError(ValueError):
    """A method of a sampler returned another value than its contract requires."""


def require_steps(sampler: object, result: Any, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return the result of `prepare_steps`.  Raises StepResultError unless it is two tensors with a row per step."""
    is_pair = isinstance(result, (tuple, list)) and len(result) == 2 and all(map(is_tensor, result))
    if not is_pair or result[0].shape != (num_steps,) or result[1].shape[:1] != (num_steps,):
        raise StepResultError(
            f"{_name(sampler)}.prepare_steps must return the times of the steps, a tensor of the shape [num_steps] = "
            f"[{num_steps}], and their coefficients, a tensor of the shape [num_steps, num_coefficients], got "
            f"{_described(result)}."
        )
    return result[0], result[1]


def require_step(sampler: object, result: Any, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result of `step`.  Raises StepResultError unless it is two tensors in the shape of x_t."""
    is_pair = isinstance(result, (tuple, list)) and len(result) == 2 and all(map(is_tensor, result))
    if not is_pair or any(part.shape != x_t.shape for part in result):
        raise StepResultError(
            f"{_name(sampler)}.step must return x of the next time and the estimate of x_0, two tensors of the shape "
            f"[B, C, H, W] = {list(x_t.shape)}, got {_described(result)}."
        )
    return result[0], result[1]


def require_sample(sampler: object, result: Any, shape: tuple[int, ...]) -> None:
    """Raise StepResultError unless the result of `sample` is a tensor of the shape [B, C, H, W]."""
    if not is_tensor(result) or result.shape != shape:
        raise StepResultError(
            f"{_name(sampler)}.sample must return images, a tensor of the shape [B, C, H, W] = {list(shape)}, got "
            f"{_described(result)}."
        )


def _name(sampler: object) -> str:
    return f"{type(sampler).__module__.partition('.')[0]}.{type(sampler).__name__}"


def _described(value: Any) -> str:
    """Return the shape of a tensor, the parts of a tuple or list, or the class of any other value."""
    if is_tensor(value):
        return f"a tensor of the shape {list(value.shape)}"
    if isinstance(value, (tuple, list)) and value:
        parts = " and ".join(map(_described, value[:3])) + (" and more" if len(value) > 3 else "")
        return f"a {type(value).__name__} of {parts}"
    return "None" if value is None else f"an object of the class {type(value).__name__}"
