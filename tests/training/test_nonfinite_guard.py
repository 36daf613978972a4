"""Steps that are not applied."""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lab.callbacks.restore_on_divergence import RestoreOnDivergence
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard, Reason
from diffusion_lab.training.optimizers import Adam
from support.faults import PlantedInfinity, PlantedNaN, learned, same
from support.small_runs import fit, small_module, weights


def guarded(guard: NonFiniteGuard, **settings: Any) -> DiffusionModule:
    """A small module that learns its times from losses: a history to spoil."""
    module = small_module()
    module.guard, module.optimizer = guard, Adam(lr=1e-2, weight_decay=0.1, **settings)
    module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_a_nan_in_one_batch_leaves_what_a_run_told_to_skip_the_step_leaves(accumulate: int, fused: bool) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    planted = fit(guarded(NonFiniteGuard(), fused=fused), 12, callbacks=[PlantedNaN([8])], **settings)
    told = fit(guarded(NonFiniteGuard(skip_steps=[8]), fused=fused), 12, **settings)
    plain = fit(guarded(NonFiniteGuard(), fused=fused), 12, **settings)
    assert same(learned(planted), learned(told))
    assert not torch.equal(weights(told.lightning_module.network), weights(plain.lightning_module.network))
    state = learned(planted)
    assert (int(state["guard.num_refused"]), int(state["guard.streak"])) == (1, 0)
    assert int(state["optimizer.0.step"]) == 11
    assert int(state["times.num_met"].sum()) == 11 * 12
    assert int(state["ema._extra_state"]) == planted.global_step == 12
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": None}, {"gradient_clip_algorithm": "value"}])
def test_an_infinite_gradient_of_a_finite_loss_is_not_applied(settings: dict[str, Any]) -> None:
    infinity = PlantedInfinity([2])
    planted = fit(guarded(NonFiniteGuard()), 5, callbacks=[infinity], **settings)
    told = fit(guarded(NonFiniteGuard(skip_steps=[2])), 5, **settings)
    assert infinity.losses[2] < 10
    assert same(learned(planted), learned(told))


class Unguarded(NonFiniteGuard):
    """Lets every step pass."""

    def checked(self, mean: Tensor, loss: Tensor, step: int) -> Tensor:
        return mean

    def admit(self, optimizer: Optimizer, gradient_norm: Tensor) -> None:
        pass


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_finite_steps_are_the_same_to_the_last_bit_with_and_without_a_guard(precision: Any) -> None:
    with_guard = fit(guarded(NonFiniteGuard()), 6, precision=precision)
    without = fit(guarded(Unguarded()), 6, precision=precision)
    assert same(learned(with_guard), learned(without))
    assert fit(guarded(Unguarded()), 3, callbacks=[PlantedNaN([1])]).callback_metrics["loss"].isnan()


def test_after_a_row_of_refused_steps_none_is_applied() -> None:
    module = guarded(NonFiniteGuard(patience=3))
    seen = Counter(weights_after_each_step(module, PlantedNaN([2, 4, 5, 6])))
    assert seen.most_common(1)[0][1] == 1 + 7 - 1  # after step 3, and in the steps 4 to 9 that followed
    assert module.guard.look().tripped
    assert module.guard.in_streak


def weights_after_each_step(module: DiffusionModule, planted: PlantedNaN) -> list[float]:
    sums = []

    class Sums(PlantedNaN):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            sums.append(float(weights(module.network).double().square().sum()))

    fit(module, 10, callbacks=[Sums(planted.steps)])
    return sums


def test_steps_that_are_skipped_on_demand_neither_lengthen_nor_end_a_row() -> None:
    guard = NonFiniteGuard(patience=3, skip_steps=[[1, 6], 8])
    fit(guarded(guard), 9, callbacks=[PlantedNaN([0, 7])])
    assert (int(guard.streak), int(guard.num_refused)) == (2, 9)


def test_a_look_says_what_became_of_each_step_since_the_last() -> None:
    guard = NonFiniteGuard(patience=8, skip_steps=[1])
    fit(guarded(guard), 6, callbacks=[PlantedNaN([0]), PlantedInfinity([4])])
    look = guard.look()
    assert look.refused == ((0, Reason.LOSS_NOT_FINITE), (1, Reason.TOLD_TO_SKIP), (4, Reason.GRADIENT_NOT_FINITE))
    assert not look.tripped
    assert guard.look().refused == ()


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the times that the host asks a device for a number."""

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
    with Waits() as waits:
        guard.checked(weight.mean(), weight, step=0)
        guard.admit(optimizer, weight.detach().norm())
        assert guard.applied.shape == ()
    assert waits.count == count


def test_a_mean_that_overflows_is_a_loss_that_is_not_finite() -> None:
    loss = torch.full((2,), 3e38, requires_grad=True)
    assert NonFiniteGuard().checked(loss.mean(), loss, step=0).isnan()
    assert NonFiniteGuard().checked(loss[0] * 1.0, loss, step=0).item() == pytest.approx(3e38)


def test_settings_that_no_guard_can_follow_are_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        NonFiniteGuard(0)
    with pytest.raises(ValueError, match="max_restores must be at least 0, got -1"):
        NonFiniteGuard(max_restores=-1)
    entries: list[int | Sequence[int]] = [-1, [5, 4], [1, 2, 3]]
    for entry in entries:
        with pytest.raises(ValueError, match=r"skip_steps must be steps of at least 0 or pairs \[first, last\]"):
            NonFiniteGuard(skip_steps=[entry])


def _train(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    callbacks = [PlantedNaN([2], rank=1), RestoreOnDivergence(folder)]
    planted = fit(guarded(NonFiniteGuard(patience=3)), 4, callbacks=callbacks, **settings)
    told = fit(guarded(NonFiniteGuard(patience=3, skip_steps=[2])), 4, **settings)
    torch.save([learned(planted), learned(told)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_refuse_together_what_one_of_them_met(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_train, args=(str(tmp_path), port), nprocs=2)  # type: ignore[no-untyped-call]
    (planted, told), (planted_too, told_too) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(planted, planted_too)
    assert same(told, told_too)
    assert same(planted, told)
    assert int(planted["optimizer.0.step"]) == 3
    _, row = (tmp_path / "refused_steps.csv").read_text().splitlines()
    assert row.startswith("2,loss not finite,")  # written by the process that did not meet it
    assert len(row.rpartition(",")[2].split()) == 12
