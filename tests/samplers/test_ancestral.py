import math

import pytest
import torch

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, FixedLarge, FixedSmall, GaussianProcess, LinearSchedule, Variance
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import Ancestral, NoClipping
from oracles import GaussianOracle, RecordedNoise, walk

SCHEDULE = LinearSchedule(20, 0.005, 0.5)
PROCESS = GaussianProcess(SCHEDULE)


def sampler(variance: Variance) -> Ancestral:
    return Ancestral(PROCESS, num_steps=20, variance=variance, clipping=NoClipping())


def deviations(variance: Variance, denoiser: DenoiserLike) -> list[float]:
    """Deviation of x_t after each step, over 46,080 pixels: its standard error is below 0.4 %."""
    visited, _ = walk(sampler(variance), denoiser, ImageNoise(range(40), (3, 24, 16)))
    return [float(x_t.std()) for x_t in visited]


def test_each_step_is_algorithm_2_of_ho_et_al() -> None:
    denoiser, noise = GaussianOracle(PROCESS, 0.3, 0.5), RecordedNoise((5, 3, 8, 6))
    visited, _ = walk(sampler(FixedLarge()), denoiser, noise)
    beta, alpha_bar = SCHEDULE.betas.tolist(), SCHEDULE.alpha_bar.tolist()
    x_t = math.sqrt(1 - alpha_bar[-1]) * noise.drawn[0]
    for i, k in enumerate(reversed(range(20))):
        x_0 = denoiser(x_t, torch.full((5,), (k + 1) / 20, dtype=torch.float64), Condition()).x_0
        epsilon = (x_t - math.sqrt(alpha_bar[k]) * x_0) / math.sqrt(1 - alpha_bar[k])
        x_t = (x_t - beta[k] / math.sqrt(1 - alpha_bar[k]) * epsilon) / math.sqrt(1 - beta[k])  # Ho et al., eq. 11
        if k > 0:
            x_t = x_t + math.sqrt(beta[k]) * noise.drawn[i + 1]
        torch.testing.assert_close(visited[i], x_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=str)
@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_as_many_noises_are_drawn_as_there_are_steps(variance: Variance, num_steps: int) -> None:
    noise = RecordedNoise((5, 3, 8, 6))  # one to start from, none in the last step
    Ancestral(PROCESS, num_steps=num_steps, variance=variance).sample(GaussianOracle(PROCESS), noise, Condition())
    assert len(noise.drawn) == num_steps


def test_the_large_variance_is_exact_for_unit_gaussian_data() -> None:
    found = deviations(FixedLarge(), GaussianOracle(PROCESS, 0.0, 1.0))
    assert found == pytest.approx([1.0] * 20, abs=0.015)


def test_the_small_variance_is_exact_for_data_at_a_point() -> None:
    found = deviations(FixedSmall(), GaussianOracle(PROCESS, 0.3, 0.0))
    expected = (1 - SCHEDULE.alpha_bar).sqrt().flip(0)[1:].tolist()
    assert found[:-1] == pytest.approx(expected, rel=0.015)
    assert found[-1] < 1e-5


@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_the_small_variance_narrows_and_the_large_widens_what_is_neither(deviation: float) -> None:
    small = deviations(FixedSmall(), GaussianOracle(PROCESS, 0.0, deviation))[-1]
    large = deviations(FixedLarge(), GaussianOracle(PROCESS, 0.0, deviation))[-1]
    assert small == pytest.approx(expected_deviation(deviation, large=False), rel=0.015)
    assert large == pytest.approx(expected_deviation(deviation, large=True), rel=0.015)
    assert small < 0.9 * deviation < large


def expected_deviation(deviation: float, *, large: bool) -> float:
    """Of the images: the chain of Ho et al. (2020), eq. 7, is linear in x_t when the denoiser is."""
    alpha_bar = [1.0, *SCHEDULE.alpha_bar.tolist()]
    variance = 1 - alpha_bar[-1]
    for k in reversed(range(1, 21)):
        now, before, beta = alpha_bar[k], alpha_bar[k - 1], 1 - alpha_bar[k] / alpha_bar[k - 1]
        gain = math.sqrt(now) * deviation**2 / (now * deviation**2 + 1 - now)
        slope = (math.sqrt(before) * beta * gain + math.sqrt(1 - beta) * (1 - before)) / (1 - now)
        added = (beta if large else beta * (1 - before) / (1 - now)) if k > 1 else 0.0
        variance = slope**2 * variance + added
    return math.sqrt(variance)


def test_the_sampler_of_ho_et_al_is_the_default() -> None:
    default = Ancestral(GaussianProcess(CosineSchedule()))
    assert (len(default.times), default.times[0], default.times[-1]) == (1000, 1.0, 0.001)
    assert default.variance == FixedLarge()
