import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import EDMSchedule, GaussianProcess, NoiseSchedule, RectifiedFlowSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import AnnealedLangevin, ListedTimes, NoClipping
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise, walk

LEVELS = [10.0, 3.0, 1.0, 0.3, 0.1]  # sigma / alpha
EDM = GaussianProcess(EDMSchedule())


def score(oracle: MixtureOracle, x_t: Tensor, t: float) -> Tensor:
    x_t = x_t.clone().requires_grad_()
    log_density = oracle.log_density(x_t, torch.full((len(x_t),), t, dtype=torch.float64))
    return torch.autograd.grad(log_density.sum(), x_t)[0]


@pytest.mark.parametrize(
    ("schedule", "time_at"),
    [(EDMSchedule(), lambda level: level), (RectifiedFlowSchedule(), lambda level: level / (1 + level))],
    ids=["edm", "rectified_flow"],
)
@pytest.mark.parametrize(("num_updates", "step_size"), [(1, 0.2), (3, 0.05)])
def test_each_level_is_algorithm_1_of_song_and_ermon(
    schedule: NoiseSchedule, time_at: Callable[[float], float], num_updates: int, step_size: float
) -> None:
    process, noise = GaussianProcess(schedule), RecordedNoise((5, 3, 8, 6))
    oracle, times = MixtureOracle(process), [time_at(level) for level in LEVELS]
    visited, _ = walk(
        AnnealedLangevin(process, 5, num_updates, step_size, ListedTimes(times), NoClipping()), oracle, noise
    )
    alphas = schedule.coefficients(torch.tensor(times, dtype=torch.float64))[0].tolist()
    epsilon, remaining = step_size * LEVELS[-1] ** 2, iter(noise.drawn)
    x = next(remaining) * LEVELS[0]  # in the paper's variable, x_t / alpha_t
    for i, (level, alpha, t) in enumerate(zip(LEVELS, alphas, times, strict=True)):
        size = epsilon * level**2 / LEVELS[-1] ** 2
        for _ in range(num_updates):
            # d log p / d(x_t / alpha_t) = alpha_t d log p / d(x_t)
            x = x + size / 2 * alpha * score(oracle, alpha * x, t) + math.sqrt(size) * next(remaining)
        if i + 1 < len(LEVELS):
            torch.testing.assert_close(visited[i], alphas[i + 1] * x, rtol=1e-9, atol=1e-9)
    image = x + LEVELS[-1] ** 2 * alphas[-1] * score(oracle, alphas[-1] * x, times[-1])  # Song & Ermon 2020, appendix
    torch.testing.assert_close(visited[-1], image, rtol=1e-9, atol=1e-9)
    assert not list(remaining)


@pytest.mark.parametrize("step_size", [0.2, 1.0])
def test_the_std_at_a_level_converges_to_the_value_for_its_step_size(step_size: float) -> None:
    sampler = AnnealedLangevin(EDM, 2, 60, step_size, ListedTimes([1.0, 0.9]), NoClipping())
    visited, _ = walk(sampler, GaussianOracle(EDM, 0.3, 0.5), ImageNoise(range(20), (3, 24, 16)))
    # x - gain x + s noise has the stationary variance s^2 / (1 - (1 - gain)^2) (Song & Ermon 2020, proposition 3).
    gain = step_size / 2 / (0.5**2 + 1)
    assert float(visited[0].mean()) == pytest.approx(0.3, abs=0.02)
    assert float(visited[0].std()) == pytest.approx(math.sqrt(step_size / (1 - (1 - gain) ** 2)), rel=0.015)


def test_the_defaults_are_those_of_the_paper() -> None:
    default = AnnealedLangevin(EDM)
    assert (default.num_updates, default.step_size) == (10, 0.2)


@pytest.mark.parametrize("step_size", [-0.1, 0.0, 4.0])
def test_step_sizes_that_do_not_converge_are_refused(step_size: float) -> None:
    with pytest.raises(ValueError, match=rf"step_size must be in \(0, 4\).* got {step_size}"):
        AnnealedLangevin(EDM, step_size=step_size)


def test_a_level_without_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="num_updates must be at least 1, got 0"):
        AnnealedLangevin(EDM, num_updates=0)


def test_the_condition_reaches_every_update() -> None:
    labels: list[Tensor | None] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        labels.append(condition.label)
        return GaussianOracle(EDM)(x_t, t, condition)

    label = torch.tensor([2, 0])
    AnnealedLangevin(EDM, 3, 4).sample(denoiser, ImageNoise(range(2), (3, 8, 6)), Condition(label))
    assert all(each is label for each in labels)
    assert len(labels) == 13
