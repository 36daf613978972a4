"""Learning-rate schedules: optimizer step -> factor on the learning rate. Each is a pure function of the step."""

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from diffusion_lab.contracts import described

LRSchedule = Callable[[int], float]
"""Function from the number of an optimizer step, counted from 0, to the factor on its learning rate."""


@dataclass(frozen=True)
class ConstantWithWarmup:
    """Linear warm-up, then constant.

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.  Raises ValueError unless it is at least 0.

    >>> from diffusion_lab import ConstantWithWarmup
    >>> [ConstantWithWarmup(4)(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    num_warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require_warmup(self.num_warmup_steps)

    def __call__(self, step: int) -> float:
        return _warmup(step, self.num_warmup_steps)


@dataclass(frozen=True)
class _DecayWithWarmup(ABC):
    """Linear warm-up, then a decay to 0.

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.
    num_decay_steps: step at which the factor reaches 0, which includes the warm-up; it stays 0 from then on.
    """

    num_warmup_steps: int
    num_decay_steps: int

    def __post_init__(self) -> None:
        _require_decay(self.num_warmup_steps, self.num_decay_steps)

    def __call__(self, step: int) -> float:
        progress = _progress(step, self.num_warmup_steps, self.num_decay_steps)
        return _warmup(step, self.num_warmup_steps) * self._decay(progress)

    @abstractmethod
    def _decay(self, progress: float) -> float:
        """Return the factor at a fraction of the decay, in [0, 1]."""


class CosineWithWarmup(_DecayWithWarmup):
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, without restarts).

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.
    num_decay_steps: step at which the factor reaches 0, which includes the warm-up; it stays 0 from then on.
    Raises ValueError unless 0 <= num_warmup_steps < num_decay_steps.

    >>> from diffusion_lab import CosineWithWarmup
    >>> [round(CosineWithWarmup(0, 4)(step), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    def _decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class LinearWithWarmup(_DecayWithWarmup):
    """Linear warm-up, then a line down to 0, as in the code of Dhariwal & Nichol (2021) for classifiers.

    The arguments are those of `CosineWithWarmup`.

    >>> from diffusion_lab import LinearWithWarmup
    >>> [LinearWithWarmup(0, 4)(step) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def _decay(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True)
class InverseSqrtWithWarmup:
    """Linear warm-up, then 1 / sqrt(step / num_constant_steps) (Karras et al. 2024, EDM2).

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.
    num_constant_steps: step up to which the factor is 1 apart from the warm-up, the paper's t_ref.
    Raises ValueError unless num_warmup_steps is at least 0 and num_constant_steps is at least 1.

    >>> from diffusion_lab import InverseSqrtWithWarmup
    >>> [InverseSqrtWithWarmup(2, 100)(step) for step in (0, 100, 400)]
    [0.5, 1.0, 0.5]
    """

    num_warmup_steps: int
    num_constant_steps: int

    def __post_init__(self) -> None:
        _require_warmup(self.num_warmup_steps)
        if self.num_constant_steps < 1:
            raise ValueError(f"num_constant_steps must be at least 1, got {self.num_constant_steps}.")

    def __call__(self, step: int) -> float:
        return _warmup(step, self.num_warmup_steps) / math.sqrt(max(1.0, step / self.num_constant_steps))


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, then constant, then 1 - sqrt(progress) down to 0 (Hägele et al. 2024).

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.
    num_decay_steps: step at which the factor reaches 0, which includes all phases; it stays 0 from then on.
    decay_fraction: length of the last phase, in (0, 1], as a fraction of num_decay_steps.
    Raises ValueError unless 0 <= num_warmup_steps < num_decay_steps and decay_fraction is in (0, 1].

    >>> from diffusion_lab import WarmupStableDecay
    >>> [WarmupStableDecay(2, 100, decay_fraction=0.2)(step) for step in (0, 80, 85, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """

    num_warmup_steps: int
    num_decay_steps: int
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        _require_decay(self.num_warmup_steps, self.num_decay_steps)
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be in (0, 1], got {self.decay_fraction}.")

    def __call__(self, step: int) -> float:
        start = self.num_decay_steps * (1 - self.decay_fraction)
        progress = _progress(step, start, self.num_decay_steps)
        return _warmup(step, self.num_warmup_steps) * (1 - math.sqrt(progress))


class TorchLRSchedule:
    """A scheduler of torch.optim.lr_scheduler that depends on the step only.

    scheduler_class: a subclass of LRScheduler.  arguments: its arguments, except the optimizer.

    Raises ValueError for a scheduler whose step needs a metric, and for unknown or invalid arguments.

    >>> from diffusion_lab import TorchLRSchedule
    >>> TorchLRSchedule(torch.optim.lr_scheduler.ExponentialLR, gamma=0.999)
    torch.optim.lr_scheduler.ExponentialLR(gamma=0.999)
    """

    def __init__(self, scheduler_class: type[LRScheduler], **arguments: Any) -> None:
        self.scheduler_class, self.arguments = scheduler_class, arguments
        name = scheduler_class.__name__
        if "metrics" in inspect.signature(scheduler_class.step).parameters:
            raise ValueError(
                "`scheduler_class` (lr_schedule._target_) must be a scheduler that depends on the step only (such as "
                f"ExponentialLR), got {name}, which needs a metric."
            )
        try:
            with warnings.catch_warnings(action="ignore"):
                self.scheduler(torch.optim.AdamW([Parameter(torch.zeros(1))])).step()
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{name} does not accept these arguments: {reason}.") from error

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Return the scheduler of an optimizer."""
        return self.scheduler_class(optimizer, **self.arguments)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={self.arguments[name]!r}" for name in sorted(self.arguments))
        return f"{self.scheduler_class.__module__}.{self.scheduler_class.__qualname__}({arguments})"


def require_lr_schedule(lr_schedule: Any) -> None:
    """Raise ValueError unless `lr_schedule` is a function of the step or a `TorchLRSchedule`."""
    is_class = isinstance(lr_schedule, type)
    if isinstance(lr_schedule, TorchLRSchedule) or (callable(lr_schedule) and not is_class):
        return
    kind = lr_schedule if is_class else type(lr_schedule)
    remedy = f"; wrap it as TorchLRSchedule({kind.__name__}, ...)" if issubclass(kind, LRScheduler) else ""
    raise ValueError(
        "`lr_schedule` must be a function from the step to a factor on the learning rate, such as "
        f"diffusion_lab.CosineWithWarmup(500, 10000), or a TorchLRSchedule, got {described(lr_schedule)}{remedy}."
    )


def build_scheduler(lr_schedule: LRSchedule | TorchLRSchedule, optimizer: Optimizer, step: int = 0) -> LRScheduler:
    """Return the scheduler of an optimizer that has taken `step` steps, and set the optimizer's learning rates.

    The state is that of a scheduler that was built before the first step and stepped `step` times.
    optimizer: a new optimizer, whose groups have their initial learning rates.
    """
    if isinstance(lr_schedule, TorchLRSchedule):
        scheduler = lr_schedule.scheduler(optimizer)
        with warnings.catch_warnings(action="ignore"):  # the optimizer itself has not taken these steps
            for _ in range(step):
                scheduler.step()
        return scheduler
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    # A plain function: LambdaLR restores the attributes of a callable object from the checkpoint, so a fork would keep
    # the learning-rate schedule of the run that it was forked from.
    return LambdaLR(optimizer, lambda number: lr_schedule(number), last_epoch=step - 1)


def _warmup(step: int, num_warmup_steps: int) -> float:
    return min(1.0, (step + 1) / num_warmup_steps) if num_warmup_steps else 1.0


def _progress(step: int, start: float, end: int) -> float:
    return min(max((step - start) / (end - start), 0.0), 1.0)


def _require_warmup(num_warmup_steps: int) -> None:
    if num_warmup_steps < 0:
        raise ValueError(f"num_warmup_steps must be at least 0, got {num_warmup_steps}.")


def _require_decay(num_warmup_steps: int, num_decay_steps: int) -> None:
    _require_warmup(num_warmup_steps)
    if num_decay_steps <= num_warmup_steps:
        raise ValueError(
            f"num_decay_steps must be greater than num_warmup_steps ({num_warmup_steps}), because it includes the "
            f"warm-up, got {num_decay_steps}."
        )
