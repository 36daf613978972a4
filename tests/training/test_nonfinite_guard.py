"""Skipped optimizer steps."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lab.callbacks.restore_on_divergence import RestoreOnDivergence
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard, Reason
from diffusion_lab.training.optimizers import OptimizerFactory
from support.faults import PlantedInfinity, PlantedNaN, learned, same
from support.ranks import run_on_ranks
from support.small_runs import fit, small_module, weights


def guarded(guard: NonFiniteGuard, **settings: Any) -> DiffusionModule:
    """Return a small module with a guard and a time distribution that learns from the losses."""
    module = small_module()
    module.guard, module.optimizer = guard, OptimizerFactory(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, **settings)
    module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    return module


@pytest.mark.parametrize(
    ("fused", "accumulate"),
    [
        (True, 2),
        (False, 1),
        pytest.param(True, 1, marks=pytest.mark.full),
        pytest.param(False, 2, marks=pytest.mark.full),
    ],
)
def test_a_nan_in_one_batch_has_the_same_result_as_a_requested_skip_of_the_step(accumulate: int, fused: bool) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    planted = fit(guarded(NonFiniteGuard(), fused=fused), 6, callbacks=[PlantedNaN([4])], **settings)
    requested = fit(guarded(NonFiniteGuard(skip_steps=[4]), fused=fused), 6, **settings)
    plain = fit(guarded(NonFiniteGuard(), fused=fused), 6, **settings)
    assert same(learned(planted), learned(requested))
    assert not torch.equal(weights(requested.lightning_module.network), weights(plain.lightning_module.network))
    state = learned(planted)
    assert (int(state["guard.num_refused"]), int(state["guard.streak"])) == (1, 0)
    assert int(state["optimizer.0.step"]) == 5
    assert int(state["times.num_met"].sum()) == 5 * 12
    assert int(state["ema._extra_state"]) == planted.global_step == 6
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": None}, {"gradient_clip_algorithm": "value"}])
def test_an_infinite_gradient_of_a_finite_loss_is_not_applied(settings: dict[str, Any]) -> None:
    infinity = PlantedInfinity([2])
    planted = fit(guarded(NonFiniteGuard()), 5, callbacks=[infinity], **settings)
    requested = fit(guarded(NonFiniteGuard(skip_steps=[2])), 5, **settings)
    assert infinity.losses[2] < 10
    assert same(learned(planted), learned(requested))


class Unguarded(NonFiniteGuard):
    """Guard that applies every step."""

    def check_loss(self, mean: Tensor, loss: Tensor, step: int) -> Tensor:
        return mean

    def check_gradient(self, optimizer: Optimizer, gradient_norm: Tensor) -> None:
        pass


@pytest.mark.parametrize(
    "precision",
    ["32-true", "bf16-mixed", *(pytest.param(name, marks=pytest.mark.full) for name in ("bf16-true", "64-true"))],
)
def test_finite_steps_are_bitwise_the_same_with_and_without_a_guard(precision: Any) -> None:
    with_guard = fit(guarded(NonFiniteGuard()), 3, precision=precision)
    without = fit(guarded(Unguarded()), 3, precision=precision)
    assert same(learned(with_guard), learned(without))
    assert fit(guarded(Unguarded()), 3, callbacks=[PlantedNaN([1])]).callback_metrics["loss"].isnan()


def test_after_a_streak_of_skipped_steps_no_step_is_applied() -> None:
    module = guarded(NonFiniteGuard(patience=3))
    counts = Counter(weights_after_each_step(module, PlantedNaN([2, 4, 5, 6])))
    assert counts.most_common(1)[0][1] == 1 + 7 - 1  # after step 3, and after the steps 4 to 9
    assert module.guard.report().tripped
    assert module.guard.in_streak


def weights_after_each_step(module: DiffusionModule, planted: PlantedNaN) -> list[float]:
    sums = []

    class Sums(PlantedNaN):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            sums.append(float(weights(module.network).double().square().sum()))

    fit(module, 10, callbacks=[Sums(planted.steps)])
    return sums


def test_requested_skips_neither_extend_nor_end_a_streak() -> None:
    guard = NonFiniteGuard(patience=3, skip_steps=[[1, 6], 8])
    fit(guarded(guard), 9, callbacks=[PlantedNaN([0, 7])])
    assert (int(guard.streak), int(guard.num_refused)) == (2, 9)


def test_a_report_contains_the_skipped_steps_since_the_last_report() -> None:
    guard = NonFiniteGuard(patience=8, skip_steps=[1])
    fit(guarded(guard), 6, callbacks=[PlantedNaN([0]), PlantedInfinity([4])])
    report = guard.report()
    assert report.skipped == ((0, Reason.LOSS_NOT_FINITE), (1, Reason.SKIP_REQUESTED), (4, Reason.GRADIENT_NOT_FINITE))
    assert not report.tripped
    assert guard.report().skipped == ()


class CountSynchronizations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often the host reads a value from a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("fused", "count"), [(True, 0), (False, 1)])
def test_a_step_of_a_fused_optimizer_does_not_wait_for_the_device(fused: bool, count: int) -> None:
    weight, guard = torch.nn.Parameter(torch.ones(3)), NonFiniteGuard()
    optimizer = torch.optim.AdamW([weight], fused=fused)
    with CountSynchronizations() as synchronizations:
        guard.check_loss(weight.mean(), weight, step=0)
        guard.check_gradient(optimizer, weight.detach().norm())
        assert guard.applied.shape == ()
    assert synchronizations.count == count


def test_a_mean_that_overflows_counts_as_a_loss_that_is_not_finite() -> None:
    loss = torch.full((2,), 3e38, requires_grad=True)
    assert NonFiniteGuard().check_loss(loss.mean(), loss, step=0).isnan()
    assert NonFiniteGuard().check_loss(loss[0] * 1.0, loss, step=0).item() == pytest.approx(3e38)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        NonFiniteGuard(0)
    with pytest.raises(ValueError, match="max_restores must be at least 0, got -1"):
        NonFiniteGuard(max_restores=-1)
    entries: list[int | Sequence[int]] = [-1, [5, 4], [1, 2, 3]]
    for entry in entries:
        with pytest.raises(ValueError, match=r"skip_steps must be steps of at least 0 or pairs \[first, last\]"):
            NonFiniteGuard(skip_steps=[entry])


def _train(folder: str) -> list[dict[str, Tensor]]:
    # Lightning starts no further processes if these are set, as by a launcher.
    os.environ |= {"LOCAL_RANK": str(torch.distributed.get_rank()), "NODE_RANK": "0"}
    settings: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    callbacks = [PlantedNaN([2], rank=1), RestoreOnDivergence(folder)]
    planted = fit(guarded(NonFiniteGuard(patience=3)), 4, callbacks=callbacks, **settings)
    requested = fit(guarded(NonFiniteGuard(patience=3, skip_steps=[2])), 4, **settings)
    return [learned(planted), learned(requested)]


def test_all_ranks_skip_a_step_whose_loss_is_not_finite_on_one_rank(tmp_path: Path) -> None:
    rank_0, rank_1 = run_on_ranks(2, _train, tmp_path, str(tmp_path))
    planted, requested = rank_0
    assert same(planted, rank_1[0])
    assert same(requested, rank_1[1])
    assert same(planted, requested)
    assert int(planted["optimizer.0.step"]) == 3
    _, row = (tmp_path / "refused_steps.csv").read_text().splitlines()
    assert row.startswith("2,loss not finite,")  # written by rank 0, although the loss of rank 1 was not finite
    assert len(row.rpartition(",")[2].split()) == 12


@pytest.mark.parametrize(
    ("skipped", "requested", "first_step", "failed"),
    [
        ("111", "000", 0, True),  # every step
        ("011", "000", 0, True),  # a learning rate that is too high spoils all steps after the first
        ("1", "0", 0, True),
        ("110", "000", 0, False),
        ("0011", "0000", 0, False),
        ("111", "111", 0, False),  # on request
        ("1011", "1000", 0, True),
        ("1", "0", 500, False),  # a bad batch at the end of a run that was resumed
        ("0111", "0000", 500, True),
    ],
)
def test_a_run_has_failed_if_all_steps_but_the_first_were_skipped(
    skipped: str, requested: str, first_step: int, failed: bool
) -> None:
    skip_steps = [first_step + k for k, flag in enumerate(requested) if flag == "1"]
    guard = NonFiniteGuard(skip_steps=skip_steps)
    guard.num_refused.add_(2)  # before the run was resumed
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    assert not guard.skipped_all
    for step, flag in enumerate(skipped, start=first_step):
        loss = torch.tensor([float("nan") if flag == "1" else 1.0])
        norm = guard.check_loss(loss.mean(), loss, step)
        guard.check_gradient(optimizer, norm)
    assert guard.skipped_all == failed
