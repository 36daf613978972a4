"""Every sampler turns noise into the distribution that an exact denoiser knows, along every kind of schedule."""

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
from support.every_sampler import Case, Spy, every_sampler
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise

# With the grid that each is sampled on in the papers; jsd and zero terminal SNR end without any signal.
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
every_schedule = pytest.mark.parametrize(("schedule", "grid"), SCHEDULES.values(), ids=SCHEDULES.keys())


@every_sampler
@every_schedule
def test_sampler_recovers_a_gaussian_from_its_exact_denoiser(
    case: Case, schedule: NoiseSchedule, grid: TimeGrid
) -> None:
    process = GaussianProcess(schedule)
    sampler = case.build(process, num_steps=case.num_steps, time_grid=grid, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(20), (3, 24, 12)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.015)  # four deviations of a mean of so many pixels
    assert float(images.std()) == pytest.approx(0.5, abs=case.bias)


@every_sampler
@pytest.mark.parametrize("name", ["cosine", "linear, zero terminal snr", "vp", "edm"])
def test_sampler_recovers_a_mixture_from_its_exact_denoiser(case: Case, name: str) -> None:
    schedule, _ = SCHEDULES[name]
    oracle = MixtureOracle(GaussianProcess(schedule))
    grid = LogSNRTimes() if name == "vp" else SCHEDULES[name][1]
    sampler = case.build(oracle.process, num_steps=case.num_steps, time_grid=grid, clipping=NoClipping())
    images = sampler.sample(oracle, ImageNoise(range(20), (3, 24, 12)), Condition())
    assert float(images.mean()) == pytest.approx(oracle.mean, abs=0.015)
    assert float(images.std()) == pytest.approx(oracle.std, abs=0.015)
    for low, high in [(-math.inf, -0.2), (-0.2, 0.5), (0.5, math.inf)]:  # around each mode
        share = float(((images > low) & (images <= high)).double().mean())
        assert share == pytest.approx(expected_share(oracle, low, high), abs=0.02)


def expected_share(oracle: MixtureOracle, low: float, high: float) -> float:
    """Of the clean pixels between low and high."""
    modes = zip(oracle.weights, oracle.means, oracle.stds, strict=True)
    return sum(
        weight * (math.erf((high - mean) / dev / 2**0.5) - math.erf((low - mean) / dev / 2**0.5)) / 2
        for weight, mean, dev in modes
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
def test_a_schedule_whose_first_step_adds_no_noise_gives_its_images_too(case: Case) -> None:
    process = GaussianProcess(LinearSchedule(50, 0.0, 0.98))
    sampler = case.build(process, num_steps=50, clipping=NoClipping())
    images = sampler.sample(GaussianOracle(process, 0.3, 0.5), ImageNoise(range(20), (3, 24, 16)), Condition())
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert 0.3 < float(images.std()) < 0.7
