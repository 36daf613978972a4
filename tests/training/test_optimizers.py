from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffusion_lab.training.optimizers import Adam


def step(adam: Adam, weight: float, gradient: float) -> float:
    parameter = nn.Parameter(torch.full((3,), weight))
    optimizer = adam([parameter])
    parameter.grad = torch.full((3,), gradient)
    optimizer.step()
    return float(parameter[0].detach())


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_step_of_adam_has_the_size_of_the_learning_rate_for_any_gradient(fused: bool) -> None:
    for gradient in (1e-3, 5.0):
        assert step(Adam(lr=0.01, fused=fused), 1.0, gradient) == pytest.approx(0.99, abs=1e-6)


def test_adam_matches_the_algorithm_of_kingma_and_ba() -> None:
    adam = Adam(lr=0.01, betas=(0.5, 0.8))
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = adam([parameter])
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
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
