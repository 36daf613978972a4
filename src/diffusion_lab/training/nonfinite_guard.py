"""A step whose loss or gradient is not finite is not applied."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Reason(IntEnum):
    """What became of a step. Of the reasons that processes see, the largest is that of all."""

    APPLIED = 0
    GRADIENT_NOT_FINITE = 1
    LOSS_NOT_FINITE = 2
    TOLD_TO_SKIP = 3
    WAITING_FOR_A_RESTORE = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class DivergedError(RuntimeError):
    """A run whose steps are refused again and again; its text is one sentence for a person."""


@dataclass(frozen=True)
class GuardReport:
    """What a guard did since the last look.  refused: (step, reason) of each step that was not applied."""

    refused: tuple[tuple[int, Reason], ...]
    tripped: bool


@dataclass(frozen=True)
class _Step:
    """What this process knows of a step: tensors [] on the device, read later.

    nothing: 0, or NaN where a loss of this process was not finite.
    """

    number: int
    told: bool
    waiting: Tensor
    refused: Tensor
    nothing: Tensor | None

    @property
    def reason(self) -> Tensor:
        """Of `Reason`: [], int64."""
        reason = self.refused.long() * Reason.GRADIENT_NOT_FINITE
        if self.nothing is not None:
            reason = reason.masked_fill(self.nothing.isnan(), Reason.LOSS_NOT_FINITE)
        if self.told:
            reason = torch.full_like(reason, Reason.TOLD_TO_SKIP)
        return reason.masked_fill(self.waiting, Reason.WAITING_FOR_A_RESTORE)


class NonFiniteGuard(nn.Module):
    """Decides on the device, without waiting for it, whether a step is applied.

    A refused step leaves weights and optimizer as they were. After `patience` refused steps in a row the guard has
    tripped: no step is applied until `start_again`. Steps count from 0, as their randomness does.

    max_restores: how often a run may go back to a checkpoint.  skip_steps: steps, or pairs [first, last] of them, that
    are not to be applied; they neither lengthen nor end a row of refused ones.
    """

    streak: Tensor
    num_refused: Tensor
    num_restores: Tensor

    def __init__(
        self, patience: int = 10, max_restores: int = 3, *, skip_steps: Sequence[int | Sequence[int]] = ()
    ) -> None:
        super().__init__()
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}.")
        if max_restores < 0:
            raise ValueError(f"max_restores must be at least 0, got {max_restores}.")
        self.patience, self.max_restores = patience, max_restores
        self._skipped = [_pair(steps) for steps in skip_steps]
        for name in ("streak", "num_refused", "num_restores"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._step = 0
        self._nothing: Tensor | None = None
        self._refused: Tensor | None = None
        self._recent: deque[_Step] = deque(maxlen=patience)

    def checked(self, mean: Tensor, loss: Tensor, step: int) -> Tensor:
        """The mean loss [], or NaN where step number `step` is not to be applied.  loss: of this process's images, [B].

        The NaN goes backward into every gradient, and with the sum of gradients to every process: a step that is to be
        skipped takes the same road as one that failed.
        """
        self._step = step
        nothing = _nothing(loss.detach()).sum() + _nothing(mean.detach())
        # Added up over the batches of an accumulated step.
        self._nothing = nothing if self._nothing is None else self._nothing + nothing
        return mean * (float("nan") if self._told_to_skip(step) else 1 + nothing)

    @torch.no_grad()
    def admit(self, optimizer: Optimizer, gradient_norm: Tensor) -> None:
        """Has the coming step of `optimizer` do nothing where gradient_norm [], over all processes, is not finite.

        Fused optimizers read the answer on the device; for others this waits for the device, once a step.
        """
        waiting, told = self.streak >= self.patience, self._told_to_skip(self._step)
        refused = waiting | _nothing(gradient_norm).isnan()
        if not told:
            self.streak.add_(1).mul_(refused)
        self.num_refused.add_(refused)
        self._recent.append(_Step(self._step, told, waiting, refused, self._nothing))
        self._refused, self._nothing = refused, None
        _withhold(optimizer, refused)

    @property
    def applied(self) -> Tensor:
        """Whether the last step was applied: bool [], on the device."""
        return torch.tensor(True) if self._refused is None else ~self._refused

    @property
    def in_streak(self) -> bool:
        """Whether the last steps were refused: no moment for a checkpoint to go back to. Waits for the device."""
        return bool(self.streak)

    def look(self) -> GuardReport:
        """What happened since the last look, `patience` steps ago at most; the same answer on every process.

        Waits for the device and for the other processes.
        """
        steps = [step.number for step in self._recent]
        state = torch.stack([self.streak, *(step.reason for step in self._recent)])
        self._recent.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # A loss is seen by one process alone; all else is the same on each.
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        streak, *reasons = state.tolist()
        refused = tuple((step, Reason(reason)) for step, reason in zip(steps, reasons, strict=True) if reason)
        return GuardReport(refused, tripped=streak >= self.patience)

    def reset_streak(self) -> None:
        """Ends the row of refused steps, after a restore."""
        self.streak.zero_()
        self.num_restores.add_(1)

    def _told_to_skip(self, step: int) -> bool:
        return any(first <= step <= last for first, last in self._skipped)


def _nothing(x: Tensor) -> Tensor:
    """0 where x is finite, else NaN."""
    return x * 0


def _withhold(optimizer: Optimizer, refused: Tensor) -> None:
    """Has the coming step do nothing where `refused` [], bool."""
    # How torch's own gradient scaler tells a fused optimizer, which then holds back its count of steps too.
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = refused.float()  # type: ignore[attr-defined]
    elif bool(refused):
        optimizer.zero_grad(set_to_none=True)  # a weight without a gradient is left alone


def _pair(steps: int | Sequence[int]) -> tuple[int, int]:
    """First and last step of an entry of skip_steps."""
    pair = (steps, steps) if isinstance(steps, int) else tuple(steps)
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"skip_steps must be steps of at least 0 or pairs [first, last] of them, got {steps}.")
    return pair[0], pair[1]
