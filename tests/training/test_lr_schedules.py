from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from diffusion_lab.training import (
    ConstantWithWarmup,
    CosineWithWarmup,
    InverseSqrtWithWarmup,
    LinearWithWarmup,
    LRSchedule,
    TorchLRSchedule,
    WarmupStableDecay,
)
from diffusion_lab.training.lr_schedules import build_scheduler


def factors(schedule: LRSchedule, num_steps: int) -> list[float]:
    return [schedule(step) for step in range(num_steps)]


def test_a_schedule_without_warm_up_is_constant() -> None:
    assert factors(ConstantWithWarmup(), 4) == [1.0] * 4


def test_warm_up_grows_linearly_to_the_full_learning_rate() -> None:
    assert factors(ConstantWithWarmup(num_warmup_steps=4), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_falls_from_the_full_learning_rate_to_0_and_stays_there() -> None:
    expected = [1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0.0, 0.0]
    assert factors(CosineWithWarmup(0, 6), 8) == pytest.approx(expected, abs=1e-7)


def test_the_cosine_starts_when_the_warm_up_ends() -> None:
    expected = [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0, 0]
    assert factors(CosineWithWarmup(2, 6), 8) == pytest.approx(expected, abs=1e-7)


def test_a_line_falls_from_the_full_learning_rate_to_0_and_stays_there() -> None:
    assert factors(LinearWithWarmup(0, 4), 6) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
    assert factors(LinearWithWarmup(2, 6), 8) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_the_inverse_square_root_starts_after_the_constant_steps() -> None:
    schedule = InverseSqrtWithWarmup(num_warmup_steps=2, num_constant_steps=4)
    assert factors(schedule, 5) == pytest.approx([0.5, 1, 1, 1, 1])
    assert [schedule(step) for step in (16, 36, 400)] == pytest.approx([1 / 2, 1 / 3, 1 / 10])


def test_the_last_phase_of_warm_up_stable_decay_falls_as_one_minus_a_square_root() -> None:
    schedule = WarmupStableDecay(num_warmup_steps=2, num_decay_steps=20, decay_fraction=0.8)
    assert factors(schedule, 5) == pytest.approx([0.5, 1, 1, 1, 1])
    assert [schedule(step) for step in (8, 13, 20, 21)] == pytest.approx([1 - 0.5, 1 - 0.75, 0, 0])


@pytest.mark.parametrize(
    "schedule",
    [CosineWithWarmup(2, 8), TorchLRSchedule(lr_scheduler.StepLR, step_size=3), TorchLRSchedule(
        lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=9)],
    ids=str,
)  # fmt: skip
def test_a_scheduler_of_a_later_step_equals_one_that_was_stepped(schedule: LRSchedule | TorchLRSchedule) -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    stepped, later = optimizer(), optimizer()
    scheduler = build_scheduler(schedule, stepped)
    for _ in range(5):
        stepped.step()
        scheduler.step()
    state = build_scheduler(schedule, later, step=5).state_dict()
    assert later.param_groups[0]["lr"] == stepped.param_groups[0]["lr"]
    assert {key: state[key] for key in ("last_epoch", "base_lrs", "_last_lr")} == {
        key: scheduler.state_dict()[key] for key in ("last_epoch", "base_lrs", "_last_lr")
    }


def test_the_learning_rate_is_that_of_the_optimizer_times_the_factor() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = build_scheduler(LinearWithWarmup(2, 6), optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025, 0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantWithWarmup(-1), "num_warmup_steps must be at least 0, got -1"),
        (lambda: CosineWithWarmup(-1, 4), "num_warmup_steps must be at least 0, got -1"),
        (lambda: CosineWithWarmup(4, 4), r"num_decay_steps must be greater than num_warmup_steps \(4\), .*, got 4"),
        (lambda: InverseSqrtWithWarmup(0, 0), "num_constant_steps must be at least 1, got 0"),
        (lambda: WarmupStableDecay(0, 4, 0.0), r"decay_fraction must be in \(0, 1\], got 0.0"),
        (lambda: TorchLRSchedule(lr_scheduler.ReduceLROnPlateau), "got ReduceLROnPlateau, which needs a metric"),
        (lambda: TorchLRSchedule(lr_scheduler.StepLR, size=3), "StepLR does not accept .* argument 'size'"),
        (lambda: CosineWithWarmup(0, 0), r"num_decay_steps must be greater than num_warmup_steps \(0\), .*, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
