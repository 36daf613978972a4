"""Guard that skips optimizer steps whose loss or gradient is not finite."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Reason(IntEnum):
    """Outcome of a step: applied, or the reason why it was skipped. If ranks differ, the largest value counts."""

    APPLIED = 0
    GRADIENT_NOT_FINITE = 1
    LOSS_NOT_FINITE = 2
    SKIP_REQUESTED = 3
    WAITING_FOR_A_RESTORE = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class DivergedError(RuntimeError):
    """Error for a training run that diverged and cannot continue. The message is one sentence for the user."""


@dataclass(frozen=True)
class GuardReport:
    """Result of the steps since the last report.

    skipped: (step, reason) of each step that was not applied.  tripped: whether a checkpoint has to be restored.
    """

    skipped: tuple[tuple[int, Reason], ...]
    tripped: bool


@dataclass(frozen=True)
class _StepRecord:
    """State of this rank at one step. The tensors, of shape [], stay on the device until a report reads them.

    waiting: whether the guard was tripped.  skipped: whether the step was not applied.
    zero_or_nan: 0, or NaN if a loss of this rank was not finite; None if no loss was checked.
    """

    number: int
    skip_requested: bool
    waiting: Tensor
    skipped: Tensor
    zero_or_nan: Tensor | None

    @property
    def reason(self) -> Tensor:
        """A `Reason` as a tensor: [], int64."""
        reason = self.skipped.long() * Reason.GRADIENT_NOT_FINITE
        if self.zero_or_nan is not None:
            reason = reason.masked_fill(self.zero_or_nan.isnan(), Reason.LOSS_NOT_FINITE)
        if self.skip_requested:
            reason = torch.full_like(reason, Reason.SKIP_REQUESTED)
        return reason.masked_fill(self.waiting, Reason.WAITING_FOR_A_RESTORE)


class NonFiniteGuard(nn.Module):
    """Module that decides on the device, without a synchronization, whether an optimizer step is applied.

    A skipped step leaves weights and optimizer state unchanged. After `patience` consecutive skipped steps the guard is
    tripped and skips all steps until `reset_streak` is called. Steps are counted from 0, as in `Draws`.

    patience: number of consecutive skipped steps that trip the guard.
    max_restores: largest number of times that a run may be restored from a checkpoint.
    skip_steps: steps, or pairs [first, last] of steps, to skip on request; they neither extend nor end a streak.

    Raises ValueError unless patience is at least 1, max_restores is at least 0, and skip_steps are valid steps.

    Buffers: numbers of consecutive skipped steps (streak), of all skipped steps (num_refused) and of restores
    (num_restores).

    >>> from diffusion_lab import NonFiniteGuard
    >>> guard, loss = NonFiniteGuard(skip_steps=[7]), torch.ones(4)
    >>> guard.check_loss(loss.mean(), loss, step=6), guard.check_loss(loss.mean(), loss, step=7)
    (tensor(1.), tensor(nan))
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
        self._skip_ranges = [_step_range(entry) for entry in skip_steps]
        for name in ("streak", "num_refused", "num_restores"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._step = 0
        self._zero_or_nan: Tensor | None = None
        self._skipped: Tensor | None = None
        self._records: deque[_StepRecord] = deque(maxlen=patience)
        self._first: tuple[int, Tensor] | None = None

    def check_loss(self, mean: Tensor, loss: Tensor, step: int) -> Tensor:
        """Return the mean loss, or NaN if step number `step` must be skipped: [].

        mean: weighted mean loss, [].  loss: losses of this rank's images, [B].
        The backward pass spreads the NaN to all gradients, and the all-reduce of the gradients spreads it to all ranks.
        A requested skip thus takes the same path as a loss that is not finite.
        """
        self._step = step
        zero_or_nan = _zero_or_nan(loss.detach()).sum() + _zero_or_nan(mean.detach())
        # Summed over the accumulated batches of a step.
        self._zero_or_nan = zero_or_nan if self._zero_or_nan is None else self._zero_or_nan + zero_or_nan
        return mean * (float("nan") if self._is_skip_requested(step) else 1 + zero_or_nan)

    @torch.no_grad()
    def check_gradient(self, optimizer: Optimizer, gradient_norm: Tensor) -> None:
        """Make the next step of `optimizer` a no-op if the gradient norm is not finite or the guard is tripped.

        gradient_norm: norm of the gradients after their all-reduce, [].
        Fused optimizers read the decision on the device. For other optimizers, every call waits for the device.
        """
        if self._first is None:
            self._first = self._step, self.num_refused.clone()
        waiting, skip_requested = self.streak >= self.patience, self._is_skip_requested(self._step)
        skipped = waiting | _zero_or_nan(gradient_norm).isnan()
        if not skip_requested:
            self.streak.add_(1).mul_(skipped)
        self.num_refused.add_(skipped)
        self._records.append(_StepRecord(self._step, skip_requested, waiting, skipped, self._zero_or_nan))
        self._skipped, self._zero_or_nan = skipped, None
        _disable_step(optimizer, skipped)

    @property
    def applied(self) -> Tensor:
        """Whether the last step was applied: bool [], on the device."""
        return torch.tensor(True) if self._skipped is None else ~self._skipped

    @property
    def skipped_all(self) -> bool:
        """Whether the last step and all others, except at most the first, had a loss or gradient that was not finite.

        The steps are those since this object was built, such as the steps since a run was resumed. The first step is
        an exception, because a learning rate that is too high spoils the steps that follow. Requested skips do not
        count. Of a resumed run, at least three steps must have been skipped, so that a bad batch at its end is no
        failure. Waits for the device.
        """
        if self._first is None or bool(self.applied) or self._is_skip_requested(self._step):
            return False
        first, num_before = self._first
        counted = sum(not self._is_skip_requested(step) for step in range(first, self._step + 1))
        num_steps, num_skipped = self._step + 1 - first, int(self.num_refused - num_before)
        return num_skipped - (num_steps - counted) >= max(3 if first else 1, counted - 1)

    @property
    def in_streak(self) -> bool:
        """Whether the streak is above 0, in which case no checkpoint should be saved. Waits for the device."""
        return bool(self.streak)

    def report(self) -> GuardReport:
        """Return the results of the steps since the last report, but of at most the last `patience` steps.

        Collective: call on all ranks; all receive the same report. Waits for the device.
        """
        steps = [record.number for record in self._records]
        state = torch.stack([self.streak, *(record.reason for record in self._records)])
        self._records.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # The losses differ between ranks; all other state is identical on all ranks.
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        streak, *reasons = state.tolist()
        skipped = tuple((step, Reason(reason)) for step, reason in zip(steps, reasons, strict=True) if reason)
        return GuardReport(skipped, tripped=streak >= self.patience)

    def reset_streak(self) -> None:
        """End the streak of skipped steps and count a restore."""
        self.streak.zero_()
        self.num_restores.add_(1)

    def _is_skip_requested(self, step: int) -> bool:
        return any(first <= step <= last for first, last in self._skip_ranges)


def _zero_or_nan(x: Tensor) -> Tensor:
    """Return 0 for each finite element of x and NaN for all others."""
    return x * 0


def _disable_step(optimizer: Optimizer, skipped: Tensor) -> None:
    """Make the next step of `optimizer` a no-op if `skipped`, bool [], is true."""
    # torch's gradient scaler passes found_inf to fused optimizers, which then leave their step counter unchanged too.
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    elif bool(skipped):
        optimizer.zero_grad(set_to_none=True)  # optimizers ignore parameters without a gradient


def _step_range(entry: int | Sequence[int]) -> tuple[int, int]:
    """Return the first and the last step of an entry of skip_steps."""
    steps = (entry, entry) if isinstance(entry, int) else tuple(entry)
    if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
        raise ValueError(f"skip_steps must be steps of at least 0 or pairs [first, last] of steps, got {entry}.")
    return steps[0], steps[1]
