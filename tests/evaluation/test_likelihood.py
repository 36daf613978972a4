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

MEAN, DEVIATION = 0.3, 0.5


def pixels(num_images: int, *shape: int) -> Tensor:
    noise = torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(0))
    return MEAN + DEVIATION * noise


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return (-((x - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=str)
@pytest.mark.parametrize("schedule", [LinearSchedule(1000), CosineSchedule(1000)], ids=["linear", "cosine"])
def test_bound_of_gaussian_data_is_the_sum_of_its_gaussian_divergences(
    schedule: LinearSchedule | CosineSchedule, variance: Variance
) -> None:
    # The exact denoiser is linear and the divergences are quadratic: their mean over all pairs of (mean - deviation,
    # mean + deviation) and (-1, 1) is the mean over the Gaussians themselves.
    x_0 = torch.tensor([MEAN - DEVIATION, MEAN + DEVIATION]).double().repeat_interleave(2).view(1, 1, 2, 2)
    noise = GivenNoise(torch.tensor([-1.0, 1.0, -1.0, 1.0]).double().view(1, 1, 2, 2))
    process = GaussianProcess(schedule)
    bound = VariationalBound(process, variance, NoClipping())
    terms = bound(GaussianOracle(process, MEAN, DEVIATION), x_0, Condition(), noise)[0]

    t = schedule.steps
    s = schedule.previous(t)
    alpha_t, sigma_t = schedule.coefficients(t)
    on_x_0, _, small = process.posterior_coefficients(s, t)
    large = schedule.betas
    left = DEVIATION**2 * sigma_t**2 / (alpha_t**2 * DEVIATION**2 + sigma_t**2)  # of the estimate: Var(x_0 | x_t)
    chosen = large if variance == FixedLarge() else small
    divergence = 0.5 * ((chosen / small).log() - 1 + (small + on_x_0**2 * left) / chosen) / math.log(2)
    spread = alpha_t[-1] ** 2 * (MEAN**2 + DEVIATION**2)
    prior = 0.5 * (sigma_t[-1] ** 2 - 1 - (sigma_t[-1] ** 2).log() + spread) / math.log(2)
    assert float(terms[1:-1].sum()) == pytest.approx(float(divergence[1:].sum()), abs=1e-6)
    assert float(terms[-1]) == pytest.approx(float(prior), abs=1e-9)
    assert len(terms) == 1001


def test_a_term_for_each_step_and_the_prior() -> None:
    process = GaussianProcess(CosineSchedule(7))
    bound = VariationalBound(process, FixedSmall())
    terms = bound(GaussianOracle(process), pixels(5, 3, 8, 6), Condition(), ImageNoise(range(5), (3, 8, 6)))
    assert (terms.shape, bound.num_terms) == ((5, 8), 8)


def test_the_bound_of_an_image_does_not_depend_on_its_batch() -> None:
    process = GaussianProcess(CosineSchedule(20))
    bound, x_0 = VariationalBound(process, FixedLarge()), pixels(5, 3, 8, 6).clamp(-1, 1)
    denoiser = GaussianOracle(process, MEAN, DEVIATION)
    together = bound(denoiser, x_0, Condition(), ImageNoise.of_images(3, range(10, 15), (3, 8, 6)))
    alone = bound(denoiser, x_0[2:3], Condition(), ImageNoise.of_images(3, [12], (3, 8, 6)))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-6, atol=1e-6)


def test_estimates_are_clipped_as_in_the_papers() -> None:
    process, x_0 = GaussianProcess(CosineSchedule(20)), pixels(5, 3, 8, 6).clamp(-1, 1)

    def far_off(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return Estimate(torch.full_like(x_t, 3.0))

    noise = (ImageNoise(range(5), (3, 8, 6)) for _ in range(2))
    clipped = VariationalBound(process, FixedLarge())(far_off, x_0, Condition(), next(noise))
    free = VariationalBound(process, FixedLarge(), NoClipping())(far_off, x_0, Condition(), next(noise))
    assert float(clipped[:, 1:-1].sum()) < 0.3 * float(free[:, 1:-1].sum())


def test_continuous_schedules_have_no_chain_to_bound() -> None:
    with pytest.raises(ValueError, match=r"the bound needs a schedule of steps .* got the continuous VPSchedule"):
        VariationalBound(GaussianProcess(VPSchedule()), FixedLarge())


SCHEDULES = [
    VPSchedule(), VPSchedule(first=1e-5), EDMSchedule(), VESchedule(), RectifiedFlowSchedule(), LinearSchedule(),
    CosineSchedule(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_flow_gives_gaussian_data_its_density(schedule: NoiseSchedule) -> None:
    process, x_0 = GaussianProcess(schedule), pixels(5, 3, 8, 6)
    probes = [ImageNoise(range(5), (3, 8, 6)).draw().sign()]
    oracle = GaussianOracle(process, MEAN, DEVIATION)
    found = FlowLikelihood(process).log_density(oracle, x_0, Condition(), probes) / x_0[0].numel() / math.log(2)
    true = normal_density(x_0.double(), MEAN, DEVIATION).log().mean(dim=(1, 2, 3)) / math.log(2)
    assert found.tolist() == pytest.approx(true.tolist(), abs=2e-3)  # bits a dimension


def test_the_flow_gives_a_mixture_its_density() -> None:
    process = GaussianProcess(VPSchedule(first=1e-5))
    oracle = MixtureOracle(process)
    levels = torch.linspace(-0.9, 0.9, 5 * 3 * 8 * 6).view(5, 3, 8, 6)
    probes = [ImageNoise(range(5), (3, 8, 6)).draw().sign()]
    found = FlowLikelihood(process).log_density(oracle, levels, Condition(), probes) / 144 / math.log(2)
    modes = zip(oracle.weights, oracle.means, oracle.stds, strict=True)
    parts = [w * normal_density(levels.double(), m, d) for w, m, d in modes]
    true = sum(parts, torch.zeros(())).log().mean(dim=(1, 2, 3)) / math.log(2)
    assert found.tolist() == pytest.approx(true.tolist(), abs=1e-2)


def test_bits_count_a_grey_level_as_two_255ths() -> None:
    process = GaussianProcess(VPSchedule(first=1e-5))
    x_0 = (pixels(4, 3, 8, 6).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    oracle = GaussianOracle(process, MEAN, DEVIATION)
    bits = FlowLikelihood(process)(oracle, x_0, Condition(), ImageNoise(range(4), (3, 8, 6)))
    upper, lower = ((x_0.double() + half - MEAN) / DEVIATION for half in (1 / 255, -1 / 255))
    level = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    assert bits.shape == (4, 1)
    assert bits[:, 0].tolist() == pytest.approx((-level.log2().mean(dim=(1, 2, 3))).tolist(), abs=1e-2)


def test_more_probes_estimate_the_same_divergence_with_less_noise() -> None:
    process = GaussianProcess(VPSchedule())
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(1)) / 48

    def mixed(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        answer = GaussianOracle(process, MEAN, DEVIATION)(x_t, t, condition).x_0
        return Estimate(answer + (answer.flatten(1) @ mixing).view_as(answer))  # pixels that depend on each other

    def spread(num_probes: int) -> float:
        likelihood = FlowLikelihood(process, 1e-3, 1e-3, num_probes)
        x_0 = pixels(1, 1, 8, 6).expand(16, 1, 8, 6)
        noise = ImageNoise(range(16), (1, 8, 6))
        probes = [noise.draw().sign() for _ in range(num_probes)]
        return float(likelihood.log_density(mixed, x_0, Condition(), probes).std())

    assert spread(8) < 0.6 * spread(1)  # a little over 1 / sqrt(8)


def test_the_flows_likelihood_of_an_image_does_not_depend_on_its_batch() -> None:
    process = GaussianProcess(CosineSchedule(50))
    flow, x_0, denoiser = FlowLikelihood(process), pixels(5, 3, 8, 6), MixtureOracle(process)
    together = flow(denoiser, x_0, Condition(), ImageNoise.of_images(3, range(10, 15), (3, 8, 6)))
    alone = flow(denoiser, x_0[2:3], Condition(), ImageNoise.of_images(3, [12], (3, 8, 6)))
    assert float(together[2]) == pytest.approx(float(alone[0]), abs=1e-6)


@pytest.mark.parametrize("setting", ["rtol", "atol", "num_probes"])
def test_tolerances_and_probes_have_to_be_above_0(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be above 0, got 0"):
        FlowLikelihood(GaussianProcess(VPSchedule()), **{setting: 0})
