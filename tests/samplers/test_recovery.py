"""Every sampler recovers the data distribution from its exact denoiser, on every kind of schedule."""

import math

import pytest
import torch

from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import KarrasTimes, LogSNRTimes, NoClipping, TimeGrid, TrailingTimes, UniformTimes
from support.every_sampler import SAMPLERS, Case, Spy, every_sampler
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise
from support.representatives import with_representatives

# With the time grids of the papers. JSD and zero terminal SNR have no signal at t_max.
SCHEDULES: dict[str, tuple[NoiseSchedule, TimeGrid]] = {
    "linear": (LinearSchedule(), UniformTimes()),
    "cosine": (CosineSchedule(), UniformTimes()),
    "linear, zero terminal snr": (LinearSchedule(zero_terminal_snr=True), TrailingTimes()),
    "jsd": (JSDSchedule(), UniformTimes()),
    "vp": (VPSchedule(), UniformTimes()),
    "ve": (VESchedule(), UniformTimes()),
    "edm": (EDMSchedule(), KarrasTimes()),
    "rectified_flow": (RectifiedFlowSchedule(), UniformTimes()),
}
every_schedule = pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        pytest.param(
            *parts, id=name, marks=[pytest.mark.full] if name in ("linear", "cosine", "vp", "jsd", "ve") else []
        )
        for name, parts in SCHEDULES.items()
    ],
)

every_sampler_but_langevin = pytest.mark.parametrize(  # its thousand evaluations take as long as all other samplers
    "case", with_representatives(SAMPLERS, SAMPLERS.keys() - {"langevin"})
)


@every_sampler
@every_schedule
def test_sampler_recovers_a_gaussian_from_its_exact_denoiser(
    case: Case, schedule: NoiseSchedule, grid: TimeGrid
) -> None:
    process = GaussianProcess(schedule)
    sampler = case.build(process, num_steps=case.num_steps, time_grid=grid, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(20), (3, 24, 12)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.015)  # four standard errors of the mean of all pixels
    assert float(images.std()) == pytest.approx(0.5, abs=case.bias)


@every_sampler_but_langevin
@pytest.mark.parametrize(
    "name",
    ["edm", *(pytest.param(name, marks=pytest.mark.full) for name in ("cosine", "linear, zero terminal snr", "vp"))],
)
def test_sampler_recovers_a_mixture_from_its_exact_denoiser(case: Case, name: str) -> None:
    schedule, _ = SCHEDULES[name]
    oracle = MixtureOracle(GaussianProcess(schedule))
    grid = LogSNRTimes() if name == "vp" else SCHEDULES[name][1]
    sampler = case.build(oracle.process, num_steps=case.num_steps, time_grid=grid, clipping=NoClipping())
    images = sampler.sample(oracle, ImageNoise(range(20), (3, 24, 12)), Condition())
    assert float(images.mean()) == pytest.approx(oracle.mean, abs=0.015)
    assert float(images.std()) == pytest.approx(oracle.std, abs=0.015)
    for low, high in [(-math.inf, -0.2), (-0.2, 0.5), (0.5, math.inf)]:  # around each mode
        fraction = float(((images > low) & (images <= high)).double().mean())
        assert fraction == pytest.approx(expected_fraction(oracle, low, high), abs=0.02)


def expected_fraction(oracle: MixtureOracle, low: float, high: float) -> float:
    """Return the fraction of clean pixels between low and high."""
    modes = zip(oracle.weights, oracle.means, oracle.stds, strict=True)
    return sum(
        weight * (math.erf((high - mean) / std / 2**0.5) - math.erf((low - mean) / std / 2**0.5)) / 2
        for weight, mean, std in modes
    )


@every_sampler
@every_schedule
def test_sampler_recovers_a_single_image_from_its_exact_denoiser(
    case: Case, schedule: NoiseSchedule, grid: TimeGrid
) -> None:
    sampler = case.build(GaussianProcess(schedule), num_steps=7, time_grid=grid)
    images = sampler.sample(Spy(), RecordedNoise((5, 3, 8, 6)), Condition())
    torch.testing.assert_close(images, torch.full_like(images, 0.5), rtol=0, atol=1e-12)


@every_sampler
def test_sampler_works_with_a_schedule_whose_first_step_adds_no_noise(case: Case) -> None:
    process = GaussianProcess(LinearSchedule(50, 0.0, 0.98))
    sampler = case.build(process, num_steps=50, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(20), (3, 24, 16)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert 0.3 < float(images.std()) < 0.7
