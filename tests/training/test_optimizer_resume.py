"""Runs with any optimizer and learning-rate schedule resume to the bit, and forks take their new settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.training import (
    ConstantWithWarmup,
    CosineWithWarmup,
    DiffusionModule,
    InverseSqrtWithWarmup,
    LinearWithWarmup,
    Muon,
    OptimizerFactory,
    TorchLRSchedule,
    WarmupStableDecay,
)
from support.small_runs import fit, small_module, weights

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": OptimizerFactory(optim.Adam, lr=1e-2, betas=(0.9, 0.99), fused=True),
    "adamw": OptimizerFactory(optim.AdamW, lr=1e-2, weight_decay=0.1, decay_matrices_only=True),
    "sgd": OptimizerFactory(optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "muon": OptimizerFactory(Muon, lr=1e-2, fused=True),
    "radam": OptimizerFactory(optim.RAdam, lr=1e-2),
    "nadam": OptimizerFactory(optim.NAdam, lr=1e-2),
    "adafactor": OptimizerFactory(optim.Adafactor, lr=1e-2),
    "asgd": OptimizerFactory(optim.ASGD, lr=1e-2),
    "rmsprop": OptimizerFactory(optim.RMSprop, lr=1e-3, momentum=0.5),
}

SCHEDULES: dict[str, Any] = {
    "constant": ConstantWithWarmup(3),
    "cosine": CosineWithWarmup(2, 8),
    "linear": LinearWithWarmup(2, 8),
    "inverse_sqrt": InverseSqrtWithWarmup(2, 3),
    "wsd": WarmupStableDecay(2, 8, 0.5),
    "exponential": TorchLRSchedule(lr_scheduler.ExponentialLR, gamma=0.8),
    "one cycle": TorchLRSchedule(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=9),
    "warm restarts": TorchLRSchedule(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
}

SOME = [("sgd", "wsd"), ("muon", "cosine"), ("adam", "one cycle")]
PAIRS = [
    *SOME,
    *(
        pytest.param(optimizer, schedule, marks=pytest.mark.full)
        for optimizer in OPTIMIZERS
        for schedule in SCHEDULES
        # OneCycleLR also cycles the momentum, which these two do not have.
        if (optimizer, schedule) not in [*SOME, ("adafactor", "one cycle"), ("asgd", "one cycle")]
    ),
]


def module(optimizer: str, schedule: str) -> DiffusionModule:
    built = small_module()
    built.optimizer, built.lr_schedule = OPTIMIZERS[optimizer], SCHEDULES[schedule]
    return built


def rates(trainer: Any) -> list[float]:
    return [group["lr"] for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize(("optimizer", "schedule"), PAIRS)
def test_a_resumed_run_equals_an_uninterrupted_run(optimizer: str, schedule: str, tmp_path: Path) -> None:
    uninterrupted, first, resumed = (module(optimizer, schedule) for _ in range(3))
    start = weights(resumed.network).clone()
    whole = fit(uninterrupted, 6, gradient_clip_val=1.0)
    fit(first, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)], gradient_clip_val=1.0)
    rest = fit(resumed, 6, ckpt_path=tmp_path / "last.ckpt", gradient_clip_val=1.0)
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))
    assert torch.equal(weights(resumed.ema.network), weights(uninterrupted.ema.network))
    assert rates(rest) == rates(whole)
    assert not torch.equal(weights(resumed.network), start)


@pytest.mark.parametrize(
    "schedule",
    [
        "cosine",
        "one cycle",
        *(pytest.param(name, marks=pytest.mark.full) for name in SCHEDULES if name not in ("cosine", "one cycle")),
    ],
)
def test_a_fork_takes_the_learning_rate_that_its_own_schedule_has_at_its_step(schedule: str, tmp_path: Path) -> None:
    saved, forked, reference = module("adam", "constant"), module("adam", schedule), module("adam", schedule)
    fit(saved, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    trainer = fit(forked, 5, ckpt_path=tmp_path / "last.ckpt")
    assert rates(trainer) == pytest.approx(rates(fit(reference, 5)), rel=1e-12)


class Cooling(optim.SGD):
    """SGD that lowers its own momentum in each step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            group["momentum"] *= 0.8


def test_a_resumed_run_keeps_arguments_that_the_optimizer_itself_has_changed(tmp_path: Path) -> None:
    uninterrupted, first, resumed = (module("sgd", "constant") for _ in range(3))
    for run in (uninterrupted, first, resumed):
        run.optimizer = OptimizerFactory(Cooling, lr=1e-2, momentum=0.9)
    fit(uninterrupted, 6)
    fit(first, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    trainer = fit(resumed, 6, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.optimizers[0].param_groups[0]["momentum"] == pytest.approx(0.9 * 0.8**6)
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))


def test_a_fork_keeps_the_moments_and_takes_the_new_arguments(tmp_path: Path) -> None:
    saved, forked = module("adam", "constant"), module("adam", "constant")
    fit(saved, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    forked.optimizer = OptimizerFactory(optim.AdamW, lr=1e-3, betas=(0.5, 0.6), weight_decay=0.3)
    trainer = fit(forked, 4, ckpt_path=tmp_path / "last.ckpt")
    (group,) = trainer.optimizers[0].param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.5, 0.6), 0.3)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}


def test_a_fork_with_another_kind_of_optimizer_starts_with_a_new_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(module("adam", "constant"), 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    trainer = fit(module("muon", "constant"), 4, ckpt_path=tmp_path / "last.ckpt")
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values() if "step" in state}
    assert steps == {1}
    assert "the state of the optimizer in the checkpoint (torch.optim.adam.Adam) is not used" in caplog.text
