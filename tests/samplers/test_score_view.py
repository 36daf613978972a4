"""Samplers and losses in terms of the score and of stochastic differential equations (Song et al. 2021)."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    FixedLarge,
    FixedSmall,
    FlowVelocity,
    GaussianProcess,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    Score,
    Variance,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.samplers import DDIM, Ancestral, Euler, ListedTimes, NoClipping, Sampler
from support.oracles import MixtureOracle, RecordedNoise, walk

SHAPE = (5, 3, 8, 6)
SCHEDULES: list[NoiseSchedule] = [
    LinearSchedule(), CosineSchedule(), VPSchedule(), VESchedule(), EDMSchedule(), RectifiedFlowSchedule(),
]  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
TIMES = [0.9, 0.7, 0.5, 0.3, 0.1]  # times of every schedule


def score(oracle: MixtureOracle, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the gradient of log q(x_t), by automatic differentiation of the density of the mixture."""
    x_t = x_t.detach().requires_grad_()
    return torch.autograd.grad(oracle.log_density(x_t, t).sum(), x_t)[0]


def noisy(oracle: MixtureOracle) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean images, noise and times, one image for each of TIMES."""
    source = RecordedNoise(SHAPE)
    return source.draw() / 2, source.draw(), torch.tensor(TIMES, dtype=torch.float64)


@every_schedule
def test_the_noise_target_is_minus_sigma_times_the_score_of_the_forward_process(schedule: NoiseSchedule) -> None:
    process = GaussianProcess(schedule)
    x_0, noise, t = noisy(MixtureOracle(process))
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    x_t = process.q_sample(x_0, t, noise).requires_grad_()
    log_density = -((x_t - alpha_t * x_0) ** 2) / (2 * sigma_t**2)  # of q(x_t | x_0)
    forward_score = torch.autograd.grad(log_density.sum(), x_t)[0]
    target = Score().target(x_0, noise, t, process)
    torch.testing.assert_close(target, forward_score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target, -Epsilon().target(x_0, noise, t, process) / sigma_t, rtol=1e-12, atol=0)


@every_schedule
def test_the_loss_of_the_noise_is_denoising_score_matching_weighted_by_the_variance(schedule: NoiseSchedule) -> None:
    process = GaussianProcess(schedule)
    x_0, noise, t = noisy(MixtureOracle(process))
    x_t, (_, sigma_t) = process.q_sample(x_0, t, noise), process.coefficients(t, like=x_0)
    output = (3 * x_t).sin()  # any network
    noise_loss = (output - Epsilon().target(x_0, noise, t, process)) ** 2
    score_loss = (-output / sigma_t - Score().target(x_0, noise, t, process)) ** 2
    torch.testing.assert_close(noise_loss, sigma_t**2 * score_loss, rtol=1e-9, atol=1e-12)
    x_0_of_noise = Epsilon().to_x_0(output, x_t, t, process)
    torch.testing.assert_close(x_0_of_noise, Score().to_x_0(-output / sigma_t, x_t, t, process), rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_score_of_the_data_follows_from_the_expected_clean_image(schedule: NoiseSchedule) -> None:
    oracle = MixtureOracle(GaussianProcess(schedule))
    x_0, noise, t = noisy(oracle)
    x_t = oracle.process.q_sample(x_0, t, noise)
    alpha_t, sigma_t = oracle.process.coefficients(t, like=x_t)
    by_tweedie = (alpha_t * oracle(x_t, t, Condition()).x_0 - x_t) / sigma_t**2
    torch.testing.assert_close(by_tweedie, score(oracle, x_t, t), rtol=1e-8, atol=1e-8)


def one_step(sampler: Sampler, noise: RecordedNoise) -> tuple[Tensor, Tensor]:
    """Return x_t and x_s of the first of two steps."""
    visited, _ = walk(sampler, MixtureOracle(sampler.process), noise)
    start = float(sampler.process.schedule.prior_std(torch.tensor(sampler.times[0], dtype=torch.float64)))
    return start * noise.drawn[0], visited[0]


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=["large", "small"])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.899), (0.5, 0.3), (0.2, 0.1)])
@every_schedule
def test_an_ancestral_step_is_drift_and_a_langevin_step(
    schedule: NoiseSchedule, t: float, s: float, variance: Variance
) -> None:
    # In y = x_t / scale, the forward step only adds noise, of variance v, and the score is multiplied by scale. Then
    # x_s = y + (v - step / 2) score_y [drift] + (step / 2) score_y + sqrt(step) z [Langevin].
    process, noise = GaussianProcess(schedule), RecordedNoise(SHAPE)
    sampler = Ancestral(process, 2, ListedTimes([t, s]), variance, NoClipping())
    x_t, x_s = one_step(sampler, noise)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        map(float, schedule.coefficients(torch.tensor(at, dtype=torch.float64))) for at in (t, s)
    )
    scale = alpha_t / alpha_s
    beta = sigma_t**2 - scale**2 * sigma_s**2
    v, step = beta / scale**2, beta if variance == FixedLarge() else beta * sigma_s**2 / sigma_t**2
    y, score_y = x_t / scale, scale * score(MixtureOracle(process), x_t, torch.full((5,), t, dtype=torch.float64))
    langevin = y + step / 2 * score_y + math.sqrt(step) * noise.drawn[1]
    drift = (v - step / 2) * score_y
    # For large sigma_t, rounding of x_t leaves fewer digits of its score.
    torch.testing.assert_close(x_s, langevin + drift, rtol=1e-10, atol=1e-10 * max(1, sigma_t))
    # In small steps the drift is the probability flow, with half the weight of the score. Langevin has the other half.
    if t - s < 0.01:
        assert (v - step / 2) / v == pytest.approx(0.5, abs=0.03)


def test_an_ancestral_step_is_equation_11_of_ho_et_al_in_its_score() -> None:
    schedule = LinearSchedule()
    process, noise = GaussianProcess(schedule), RecordedNoise(SHAPE)
    x_t, x_s = one_step(Ancestral(process, 2, ListedTimes([0.4, 0.399]), clipping=NoClipping()), noise)
    beta = float(schedule.betas[399])
    shifted = x_t + beta * score(MixtureOracle(process), x_t, torch.full((5,), 0.4, dtype=torch.float64))
    expected = shifted / math.sqrt(1 - beta) + math.sqrt(beta) * noise.drawn[1]
    torch.testing.assert_close(x_s, expected, rtol=1e-10, atol=1e-10)


@every_schedule
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance(schedule: NoiseSchedule) -> None:
    process, listed = GaussianProcess(schedule), ListedTimes(TIMES)
    oracle = MixtureOracle(process)
    small = Ancestral(process, 5, listed, FixedSmall(), NoClipping())
    implicit = DDIM(process, 5, 1.0, listed, NoClipping())
    found, expected = (walk(each, oracle, RecordedNoise(SHAPE))[0] for each in (implicit, small))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    large, _ = walk(Ancestral(process, 5, listed, FixedLarge(), NoClipping()), oracle, RecordedNoise(SHAPE))
    assert float((large - found)[0].abs().max()) > 0.01


@every_schedule
@pytest.mark.parametrize("build", [DDIM, Euler])
def test_ddim_with_eta_0_is_eulers_method_on_the_flow_of_x_over_alpha(
    build: type[DDIM] | type[Euler], schedule: NoiseSchedule
) -> None:
    process, noise = GaussianProcess(schedule), RecordedNoise(SHAPE)
    oracle = MixtureOracle(process)
    visited, _ = walk(build(process, 5, time_grid=ListedTimes(TIMES), clipping=NoClipping()), oracle, noise)
    alpha, sigma = (each.tolist() for each in schedule.coefficients(torch.tensor([*TIMES, 0.0], dtype=torch.float64)))
    ratio = [s / a for s, a in zip(sigma, alpha, strict=True)]
    start = schedule.prior_std(torch.tensor(TIMES[0], dtype=torch.float64))
    x = noise.drawn[0] * float(start) / alpha[0]  # x_t / alpha_t
    for i, t in enumerate(TIMES):
        # dx / d(ratio) = -ratio times the score of x, which is alpha times that of x_t (Song et al. 2021, eq. 14)
        slope = -ratio[i] * alpha[i] * score(oracle, alpha[i] * x, torch.full((5,), t, dtype=torch.float64))
        x = x + (ratio[i + 1] - ratio[i]) * slope
        torch.testing.assert_close(visited[i], alpha[i + 1] * x, rtol=1e-8, atol=1e-8)


def test_on_rectified_flow_ddim_steps_follow_the_velocity() -> None:
    process, noise = GaussianProcess(RectifiedFlowSchedule()), RecordedNoise(SHAPE)
    oracle = MixtureOracle(process)
    times = [1.0, *TIMES]
    visited, _ = walk(DDIM(process, 6, time_grid=ListedTimes(times), clipping=NoClipping()), oracle, noise)
    x = noise.drawn[0]
    for i, (t, s) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        at = torch.full((5,), t, dtype=torch.float64)
        x_0 = oracle(x, at, Condition()).x_0
        v = FlowVelocity().target(x_0, (x - (1 - t) * x_0) / t, at, process)
        x = x + (s - t) * v
        torch.testing.assert_close(visited[i], x, rtol=1e-9, atol=1e-9)
