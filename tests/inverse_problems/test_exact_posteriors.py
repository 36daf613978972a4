"""Posterior samplers compared with exact posteriors of Gaussians and of a mixture of Gaussians."""

import pytest
import torch
from torch import Tensor

from diffusion_lab.inverse_problems import (
    DDNM,
    DDRM,
    DPS,
    MMPS,
    AreaDownsampling,
    BicubicDownsampling,
    CompressedSensing,
    GaussianBlur,
    Grayscale,
    IdentityOperator,
    Inpainting,
    LinearOperator,
    MotionBlur,
    PiGDM,
    PosteriorSampler,
    RePaint,
    Replace,
)
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    LinearSchedule,
    NoiseSchedule,
    VPSchedule,
)
from diffusion_lab.samplers import (
    DDIM,
    RK45,
    Ancestral,
    Heun,
    KarrasTimes,
    NoClipping,
    Sampler,
    TimeGrid,
    UniformTimes,
)
from support.exact_posteriors import BatchNoise, Errors, ExactDenoiser, MixtureOfGaussians, measured
from support.representatives import with_representatives

SHAPE = (1, 2, 4)
RIGHT = torch.tensor([[False, False, True, True]] * 2)
DATA = {
    "isotropic": MixtureOfGaussians.isotropic,
    "correlated": MixtureOfGaussians.correlated,
    "mixture": MixtureOfGaussians.mixture,
}
CASES: dict[str, tuple[LinearOperator, float]] = {
    "inpainting": (Inpainting(SHAPE, RIGHT), 0.0),
    "inpainting, noise": (Inpainting(SHAPE, RIGHT), 0.2),
    "area": (AreaDownsampling(SHAPE, 2), 0.0),
    "area, noise": (AreaDownsampling(SHAPE, 2), 0.2),
    "bicubic": (BicubicDownsampling(SHAPE, 2), 0.0),
    "gray": (Grayscale((3, 2, 2)), 0.0),
    "gray, noise": (Grayscale((3, 2, 2)), 0.2),
    "compressed sensing": (CompressedSensing(SHAPE, 0.5), 0.0),
    "compressed sensing, noise": (CompressedSensing(SHAPE, 0.5), 0.2),
    "gaussian blur, noise": (GaussianBlur(SHAPE, 0.6), 0.2),
    "motion blur, noise": (MotionBlur(SHAPE, 2.5, 30.0), 0.2),
    "denoising": (IdentityOperator(SHAPE), 0.2),
    "area, 64 dimensions": (AreaDownsampling((1, 8, 8), 2), 0.2),
}
every_case = pytest.mark.parametrize(("operator", "noise_std"), CASES.values(), ids=CASES.keys())
COSINE = GaussianProcess(CosineSchedule())


def ddim(num_steps: int, eta: float = 0.0) -> DDIM:
    return DDIM(COSINE, num_steps, eta=eta, clipping=NoClipping())


def sample(
    posterior: PosteriorSampler,
    sampler: Sampler,
    data: MixtureOfGaussians,
    operator: LinearOperator,
    noise_std: float,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """Return samples of a method, and samples of the exact conditional denoiser with the same noise."""
    measurement, shape = measured(data, operator, noise_std, num_samples), (num_samples, *operator.image_shape)
    exact = ExactDenoiser(sampler.process, data.posterior(measurement))
    samples = posterior.sample(sampler, ExactDenoiser(sampler.process, data), measurement, BatchNoise(shape))
    return samples, sampler.sample(exact, BatchNoise(shape))


@pytest.mark.parametrize("case", with_representatives(CASES, ["inpainting", "area, noise", "gaussian blur, noise"]))
@pytest.mark.parametrize("name", ["correlated", "mixture"])
def test_the_exact_conditional_denoiser_samples_the_exact_posterior(
    name: str, case: tuple[LinearOperator, float]
) -> None:
    """The error of the mean is at most four Monte Carlo errors, and that of the covariance includes the steps'."""
    operator, noise_std = case
    data, count = DATA[name](operator.image_shape), 1000
    posterior = data.posterior(measured(data, operator, noise_std, 1))
    samples = ddim(60).sample(ExactDenoiser(COSINE, posterior), BatchNoise((count, *operator.image_shape)))
    found, expected = Errors.of(samples, posterior, data), Errors.expected(count, posterior, data)
    assert found.mean <= 4 * expected.mean
    assert found.covariance <= 4 * expected.covariance + 0.02
    assert found.weights <= 4 * expected.weights + 0.01


@every_case
@pytest.mark.parametrize("name", ["isotropic", "correlated"])
def test_mmps_is_the_exact_conditional_denoiser_for_gaussian_data(
    name: str, operator: LinearOperator, noise_std: float
) -> None:
    samples, exact = sample(MMPS(64), ddim(10, eta=1.0), DATA[name](operator.image_shape), operator, noise_std, 20)
    torch.testing.assert_close(samples, exact, rtol=0, atol=1e-6)


@every_case
def test_pigdm_is_the_exact_conditional_denoiser_for_isotropic_data(operator: LinearOperator, noise_std: float) -> None:
    data = MixtureOfGaussians.isotropic(operator.image_shape)
    samples, exact = sample(PiGDM(), ddim(10, eta=1.0), data, operator, noise_std, 20)
    torch.testing.assert_close(samples, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("operator", "noise_std"), [case for case in CASES.values() if case[1] == 0])
def test_ddnm_without_noise_is_the_exact_conditional_denoiser_for_isotropic_data(
    operator: LinearOperator, noise_std: float
) -> None:
    data = MixtureOfGaussians.isotropic(operator.image_shape)
    samples, exact = sample(DDNM(), ddim(10, eta=1.0), data, operator, noise_std, 20)
    torch.testing.assert_close(samples, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (VPSchedule(), UniformTimes()),
        (EDMSchedule(), KarrasTimes()),
        (LinearSchedule(), UniformTimes()),
    ],
    ids=["vp", "edm", "linear"],
)
@pytest.mark.parametrize("build", [DDIM, Ancestral, Heun, RK45])
@pytest.mark.parametrize("method", [MMPS(8), PiGDM()])
def test_the_estimates_are_exact_with_every_schedule_and_sampler(
    schedule: NoiseSchedule, grid: TimeGrid, build: type[DDIM], method: PosteriorSampler
) -> None:
    sampler = build(GaussianProcess(schedule), 5, time_grid=grid, clipping=NoClipping())
    data = MixtureOfGaussians.isotropic(SHAPE)
    operator = AreaDownsampling(SHAPE, 2)
    samples, exact = sample(method, sampler, data, operator, 0.2, 10)
    torch.testing.assert_close(samples, exact, rtol=0, atol=1e-6)


PAPER = PiGDM(step_weights="paper")
MEASURED_BIASES: dict[str, tuple[PosteriorSampler, str, float, Errors]] = {
    "exact": (MMPS(8), "correlated", 0.2, Errors(0.009, 0.051, 0.0)),  # the errors of the steps and of 1000 samples
    "pigdm": (PiGDM(), "correlated", 0.2, Errors(0.083, 0.037, 0.0)),
    "pigdm, paper": (PAPER, "correlated", 0.2, Errors(0.158, 0.110, 0.0)),
    "dps": (DPS(), "correlated", 0.2, Errors(0.258, 0.225, 0.0)),
    "ddnm": (DDNM(), "correlated", 0.2, Errors(0.187, 0.074, 0.0)),
    "ddrm": (DDRM(), "correlated", 0.2, Errors(0.081, 0.107, 0.0)),
    "replace": (Replace(), "correlated", 0.2, Errors(0.209, 0.047, 0.0)),
    "repaint": (RePaint(5, 5), "correlated", 0.0, Errors(0.068, 0.066, 0.0)),
    "mmps, mixture": (MMPS(8), "mixture", 0.0, Errors(0.025, 0.079, 0.044)),
    "pigdm, mixture": (PiGDM(), "mixture", 0.0, Errors(0.200, 0.054, 0.120)),
    "pigdm, paper, mixture": (PAPER, "mixture", 0.0, Errors(0.055, 0.132, 0.064)),
    "dps, mixture": (DPS(), "mixture", 0.0, Errors(0.113, 0.256, 0.101)),
    "ddnm, mixture": (DDNM(), "mixture", 0.0, Errors(0.218, 0.144, 0.142)),
    "ddrm, mixture": (DDRM(), "mixture", 0.0, Errors(0.201, 0.035, 0.114)),
    "replace, mixture": (Replace(), "mixture", 0.0, Errors(0.170, 0.142, 0.101)),
    "repaint, mixture": (RePaint(5, 5), "mixture", 0.0, Errors(0.129, 0.038, 0.076)),
}


@pytest.mark.parametrize(
    "case",
    with_representatives(MEASURED_BIASES, [name for name in MEASURED_BIASES if "mixture" not in name]),
)
def test_a_method_has_the_bias_that_was_measured(case: tuple[PosteriorSampler, str, float, Errors]) -> None:
    """1000 samples of the right half given the left half have these errors, neither larger nor smaller ones."""
    method, name, noise_std, expected = case
    data, eta = DATA[name](SHAPE), 0.0 if isinstance(method, DDRM) else 1.0
    measurement = measured(data, Inpainting(SHAPE, RIGHT), noise_std, 1000)
    samples = method.sample(ddim(50, eta), ExactDenoiser(COSINE, data), measurement, BatchNoise((1000, *SHAPE)))
    found = Errors.of(samples, data.posterior(measurement), data)
    assert found.mean == pytest.approx(expected.mean, rel=0.05, abs=0.005)
    assert found.covariance == pytest.approx(expected.covariance, rel=0.05, abs=0.005)
    assert found.weights == pytest.approx(expected.weights, rel=0.05, abs=0.005)
