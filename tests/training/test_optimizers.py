from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffusion_lab.training.optimizers import Adam, LearningRateCourse


def rates(adam: Adam, num_steps: int) -> list[float]:
    """The learning rate of each step, as a training loop meets it."""
    optimizer, scheduler = adam([nn.Parameter(torch.zeros(3))])
    met = []
    for _ in range(num_steps):
        met.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return met


def step(adam: Adam, weight: float, gradient: float) -> float:
    parameter = nn.Parameter(torch.full((3,), weight))
    optimizer, _ = adam([parameter])
    parameter.grad = torch.full((3,), gradient)
    optimizer.step()
    return float(parameter[0].detach())


def test_rate_is_constant_unless_asked_otherwise() -> None:
    assert rates(Adam(lr=0.3), 4) == [0.3] * 4


def test_warm_up_grows_by_equal_steps_to_the_full_rate() -> None:
    course = LearningRateCourse(num_warmup_steps=4)
    assert rates(Adam(lr=0.8, course=course), 6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_cosine_falls_from_the_full_rate_to_0_and_stays_there() -> None:
    course = LearningRateCourse(num_decay_steps=6)
    expected = [1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0.0, 0.0]
    assert [course(step) for step in range(8)] == pytest.approx(expected, abs=1e-7)


def test_cosine_begins_where_warm_up_ends() -> None:
    course = LearningRateCourse(num_warmup_steps=2, num_decay_steps=6)
    assert [course(step) for step in range(8)] == pytest.approx([0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0, 0], abs=1e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_first_step_of_adam_is_the_learning_rate_whatever_the_gradient(fused: bool) -> None:
    for gradient in (1e-3, 5.0):
        assert step(Adam(lr=0.01, fused=fused), 1.0, gradient) == pytest.approx(0.99, abs=1e-6)


def test_adam_is_the_algorithm_of_kingma_and_ba() -> None:
    adam = Adam(lr=0.01, betas=(0.5, 0.8))
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer, _ = adam([parameter])
    weight, mean, square = 1.0, 0.0, 0.0
    for n, gradient in enumerate([2.0, -1.0, 0.5], start=1):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        mean, square = 0.5 * mean + 0.5 * gradient, 0.8 * square + 0.2 * gradient**2
        weight -= 0.01 * (mean / (1 - 0.5**n)) / ((square / (1 - 0.8**n)) ** 0.5 + 1e-8)
    assert float(parameter.detach()) == pytest.approx(weight, abs=1e-6)


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    assert step(Adam(lr=0.01, weight_decay=0.5), 3.0, 0.0) == pytest.approx(3 * (1 - 0.01 * 0.5), rel=1e-6)
    assert step(Adam(lr=0.01), 3.0, 0.0) == 3.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adam(lr=0.0), "lr must be above 0, got 0.0"),
        (lambda: Adam(lr=float("nan")), "lr must be above 0, got nan"),
        (lambda: LearningRateCourse(-1), "num_warmup_steps must be at least 0, got -1"),
        (lambda: LearningRateCourse(4, 4), "num_decay_steps must be above num_warmup_steps=4, got 4"),
        (lambda: LearningRateCourse(0, 0), "num_decay_steps must be above num_warmup_steps=0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
