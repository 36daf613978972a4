"""Heun's method on the noise schedules and time grids of this package."""

import pytest

from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VPSchedule,
)
from diffusion_lab.process.gaussian import GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import Heun, KarrasTimes, NoClipping, TimeGrid, TrailingTimes, UniformTimes
from support.oracles import MixtureOracle

SCHEDULES = [
    CosineSchedule(), CosineSchedule(zero_terminal_snr=True), LinearSchedule(), JSDSchedule(), VPSchedule(),
    RectifiedFlowSchedule(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", [UniformTimes(), TrailingTimes()], ids=str)
@pytest.mark.parametrize("num_steps", [10, 20])
def test_steps_from_nearly_pure_noise_do_not_leave_the_distribution(
    schedule: NoiseSchedule, grid: TimeGrid, num_steps: int
) -> None:
    process = GaussianProcess(schedule)
    oracle = MixtureOracle(process)
    noise = ImageNoise(range(50), (1, 8, 6)).draw()
    exact = oracle.flow(noise.double(), schedule.t_max, 0.0)
    images = Heun(process, num_steps, time_grid=grid, clipping=NoClipping()).sample(oracle, noise)
    assert images.abs().max() < 1.5
    assert (images - exact).square().mean().sqrt() < 0.1


def test_only_steps_from_levels_above_those_of_the_paper_have_no_correction() -> None:
    def evaluations(schedule: NoiseSchedule, sigma_max: float) -> int:
        return Heun(GaussianProcess(schedule), 18, time_grid=KarrasTimes(sigma_max=sigma_max)).num_evaluations

    assert evaluations(EDMSchedule(sigma_max=80.0), 80.0) == 35  # Karras et al. (2022), Table 2
    assert evaluations(EDMSchedule(sigma_max=300.0), 152.0) == 35  # the VP sampler of the paper
    assert evaluations(EDMSchedule(sigma_max=300.0), 201.0) == 34
    assert Heun(GaussianProcess(CosineSchedule()), 18).num_evaluations == 34  # from sigma / alpha = 20,000
