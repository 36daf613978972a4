import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.evaluation.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    Variance,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import GivenNoise, NoClipping
from support.oracles import GaussianOracle, MixtureOracle

MEAN, STD = 0.3, 0.5


def pixels(num_images: int, *shape: int) -> Tensor:
    noise = torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(0))
    return MEAN + STD * noise


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return (-((x - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("schedule", "variance"),
    [
        pytest.param(LinearSchedule(250), FixedLarge(), id="linear, large"),
        pytest.param(CosineSchedule(250), FixedSmall(), id="cosine, small"),
        pytest.param(LinearSchedule(250), FixedSmall(), id="linear, small", marks=pytest.mark.full),
        pytest.param(CosineSchedule(250), FixedLarge(), id="cosine, large", marks=pytest.mark.full),
    ],
)
def test_the_bound_of_gaussian_data_is_the_sum_of_its_gaussian_divergences(
    schedule: LinearSchedule | CosineSchedule, variance: Variance
) -> None:
    # The exact denoiser is linear and the divergences are quadratic: their mean over all pairs of
    # (mean - std, mean + std) and (-1, 1) is the mean over the Gaussians themselves.
    x_0 = torch.tensor([MEAN - STD, MEAN + STD]).double().repeat_interleave(2).view(1, 1, 2, 2)
    noise = GivenNoise(torch.tensor([-1.0, 1.0, -1.0, 1.0]).double().view(1, 1, 2, 2))
    process = GaussianProcess(schedule)
    bound = VariationalBound(process, variance, NoClipping())
    terms = bound(GaussianOracle(process, MEAN, STD), x_0, Condition(), noise)[0]

    t = schedule.steps
    s = schedule.previous(t)
    alpha_t, sigma_t = schedule.coefficients(t)
    on_x_0, _, small = process.posterior_coefficients(s, t)
    large = schedule.betas
    left = STD**2 * sigma_t**2 / (alpha_t**2 * STD**2 + sigma_t**2)  # Var(x_0 | x_t), the variance of the estimate
    chosen = large if variance == FixedLarge() else small
    divergence = 0.5 * ((chosen / small).log() - 1 + (small + on_x_0**2 * left) / chosen) / math.log(2)
    spread = alpha_t[-1] ** 2 * (MEAN**2 + STD**2)
    prior = 0.5 * (sigma_t[-1] ** 2 - 1 - (sigma_t[-1] ** 2).log() + spread) / math.log(2)
    assert float(terms[1:-1].sum()) == pytest.approx(float(divergence[1:].sum()), abs=1e-6)
    assert float(terms[-1]) == pytest.approx(float(prior), abs=1e-9)
    assert len(terms) == 251


def test_the_bound_has_a_term_for_each_step_and_one_for_the_prior() -> None:
    process = GaussianProcess(CosineSchedule(7))
    bound = VariationalBound(process, FixedSmall())
    terms = bound(GaussianOracle(process), pixels(5, 3, 8, 6), Condition(), ImageNoise(range(5), (3, 8, 6)))
    assert (terms.shape, bound.num_terms) == ((5, 8), 8)


def test_the_bound_of_an_image_does_not_depend_on_its_batch() -> None:
    process = GaussianProcess(CosineSchedule(20))
    bound, x_0 = VariationalBound(process, FixedLarge()), pixels(5, 3, 8, 6).clamp(-1, 1)
    denoiser = GaussianOracle(process, MEAN, STD)
    batch = bound(denoiser, x_0, Condition(), ImageNoise.of_images(3, range(10, 15), (3, 8, 6)))
    alone = bound(denoiser, x_0[2:3], Condition(), ImageNoise.of_images(3, [12], (3, 8, 6)))
    torch.testing.assert_close(batch[2:3], alone, rtol=1e-6, atol=1e-6)


def test_estimates_are_clipped_as_in_the_papers() -> None:
    process, x_0 = GaussianProcess(CosineSchedule(20)), pixels(5, 3, 8, 6).clamp(-1, 1)

    def out_of_range(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(torch.full_like(x_t, 3.0))

    noise = (ImageNoise(range(5), (3, 8, 6)) for _ in range(2))
    clipped = VariationalBound(process, FixedLarge())(out_of_range, x_0, Condition(), next(noise))
    unclipped = VariationalBound(process, FixedLarge(), NoClipping())(out_of_range, x_0, Condition(), next(noise))
    assert float(clipped[:, 1:-1].sum()) < 0.3 * float(unclipped[:, 1:-1].sum())


def test_the_bound_of_a_continuous_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`schedule` must have discrete steps .* \(metrics=nll or bound\), got the"):
        VariationalBound(GaussianProcess(VPSchedule()), FixedLarge())


SCHEDULES = [
    VPSchedule(), VPSchedule(first=1e-5), EDMSchedule(), VESchedule(), RectifiedFlowSchedule(), LinearSchedule(),
    CosineSchedule(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_flow_likelihood_of_gaussian_data_is_its_density(schedule: NoiseSchedule) -> None:
    process, x_0 = GaussianProcess(schedule), pixels(5, 3, 8, 6)
    probes = [ImageNoise(range(5), (3, 8, 6)).draw().sign()]
    oracle = GaussianOracle(process, MEAN, STD)
    found = FlowLikelihood(process).log_density(oracle, x_0, Condition(), probes) / x_0[0].numel() / math.log(2)
    true = normal_density(x_0.double(), MEAN, STD).log().mean(dim=(1, 2, 3)) / math.log(2)
    assert found.tolist() == pytest.approx(true.tolist(), abs=2e-3)  # bits per dimension


def test_the_flow_likelihood_of_a_mixture_is_its_density() -> None:
    process = GaussianProcess(VPSchedule(first=1e-5))
    oracle = MixtureOracle(process)
    levels = torch.linspace(-0.9, 0.9, 5 * 3 * 8 * 6).view(5, 3, 8, 6)
    probes = [ImageNoise(range(5), (3, 8, 6)).draw().sign()]
    found = FlowLikelihood(process).log_density(oracle, levels, Condition(), probes) / 144 / math.log(2)
    modes = zip(oracle.weights, oracle.means, oracle.stds, strict=True)
    parts = [w * normal_density(levels.double(), m, d) for w, m, d in modes]
    true = sum(parts, torch.zeros(())).log().mean(dim=(1, 2, 3)) / math.log(2)
    assert found.tolist() == pytest.approx(true.tolist(), abs=1e-2)


def test_the_width_of_a_gray_level_is_two_255ths() -> None:
    process = GaussianProcess(VPSchedule(first=1e-5))
    x_0 = (pixels(4, 3, 8, 6).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    oracle = GaussianOracle(process, MEAN, STD)
    bits = FlowLikelihood(process)(oracle, x_0, Condition(), ImageNoise(range(4), (3, 8, 6)))
    upper, lower = ((x_0.double() + half - MEAN) / STD for half in (1 / 255, -1 / 255))
    level = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    assert bits.shape == (4, 1)
    assert bits[:, 0].tolist() == pytest.approx((-level.log2().mean(dim=(1, 2, 3))).tolist(), abs=1e-2)


def test_more_probes_reduce_the_variance_of_the_divergence() -> None:
    process = GaussianProcess(VPSchedule())
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(1)) / 48

    def mixing_denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        estimate = GaussianOracle(process, MEAN, STD)(x_t, t, condition).x_0
        return Estimate(estimate + (estimate.flatten(1) @ mixing).view_as(estimate))  # pixels depend on each other

    def std(num_probes: int) -> float:
        likelihood = FlowLikelihood(process, 1e-3, 1e-3, num_probes)
        x_0 = pixels(1, 1, 8, 6).expand(16, 1, 8, 6)
        noise = ImageNoise(range(16), (1, 8, 6))
        probes = [noise.draw().sign() for _ in range(num_probes)]
        return float(likelihood.log_density(mixing_denoiser, x_0, Condition(), probes).std())

    assert std(8) < 0.6 * std(1)  # expected: 1 / sqrt(8)


def test_the_flow_likelihood_of_an_image_does_not_depend_on_its_batch() -> None:
    process = GaussianProcess(CosineSchedule(50))
    flow, x_0, denoiser = FlowLikelihood(process), pixels(5, 3, 8, 6), MixtureOracle(process)
    batch = flow(denoiser, x_0, Condition(), ImageNoise.of_images(3, range(10, 15), (3, 8, 6)))
    alone = flow(denoiser, x_0[2:3], Condition(), ImageNoise.of_images(3, [12], (3, 8, 6)))
    assert float(batch[2]) == pytest.approx(float(alone[0]), abs=1e-6)


@pytest.mark.parametrize("setting", ["rtol", "atol", "num_probes"])
def test_tolerances_and_number_of_probes_must_be_above_0(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be above 0, got 0"):
        FlowLikelihood(GaussianProcess(VPSchedule()), **{setting: 0})
