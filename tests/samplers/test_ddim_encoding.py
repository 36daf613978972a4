"""DDIM encoding: from images to the noise from which they are generated."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VPSchedule,
)
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, GivenNoise, KarrasTimes, ListedTimes, NoClipping, TimeGrid, UniformTimes
from support.every_sampler import Spy
from support.oracles import GaussianOracle, MixtureOracle, RecordedNoise

SHAPE = (5, 3, 8, 6)
SCHEDULES: dict[str, tuple[NoiseSchedule, TimeGrid]] = {
    "linear": (LinearSchedule(4000, 2.5e-5, 0.005), UniformTimes()),
    "cosine": (CosineSchedule(4000), UniformTimes()),
    "vp": (VPSchedule(), UniformTimes()),
    "edm": (EDMSchedule(), KarrasTimes()),
    "rectified_flow": (RectifiedFlowSchedule(), UniformTimes()),
}
every_schedule = pytest.mark.parametrize(("schedule", "grid"), SCHEDULES.values(), ids=SCHEDULES.keys())


def gaussian_images() -> Tensor:
    return 0.3 + 0.5 * ImageNoise(range(100, 105), SHAPE[1:]).draw().double()


def round_trip_error(schedule: NoiseSchedule, grid: TimeGrid, num_steps: int) -> float:
    process = GaussianProcess(schedule)
    sampler, oracle = DDIM(process, num_steps, time_grid=grid, clipping=NoClipping()), GaussianOracle(process, 0.3, 0.5)
    images = gaussian_images()
    decoded = sampler.sample(oracle, GivenNoise(sampler.encode(oracle, images, Condition())), Condition())
    return float((decoded - images).square().mean().sqrt())


@every_schedule
def test_the_error_of_the_round_trip_is_of_first_order(schedule: NoiseSchedule, grid: TimeGrid) -> None:
    num_steps = (40, 80, 160, 320)
    errors = [round_trip_error(schedule, grid, n) for n in num_steps]
    x, y = ([math.log(value) for value in values] for values in (num_steps, errors))
    middle = sum(x) / len(x)
    slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    assert -slope == pytest.approx(1, abs=0.25)
    assert errors[-1] < 0.04


@every_schedule
def test_the_noise_of_images_from_the_data_distribution_is_approximately_standard_normal(
    schedule: NoiseSchedule, grid: TimeGrid
) -> None:
    process = GaussianProcess(schedule)
    sampler = DDIM(process, 250, time_grid=grid, clipping=NoClipping())
    images = 0.3 + 0.5 * ImageNoise(range(40), (3, 24, 16)).draw()
    noise = sampler.encode(GaussianOracle(process, 0.3, 0.5), images, Condition())
    assert (noise.shape, noise.dtype) == (images.shape, torch.float32)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)


def test_the_noise_of_a_mixture_is_that_of_its_exact_flow() -> None:
    process = GaussianProcess(VPSchedule())
    oracle, t = MixtureOracle(process), [0.05, 1.0]
    start = RecordedNoise(SHAPE).draw()
    images = oracle.flow(start, t[1], 1e-3) / float(process.schedule.coefficients(torch.tensor(1e-3))[0])
    sampler = DDIM(process, 1000, clipping=NoClipping())
    found = sampler.encode(oracle, images, Condition())
    assert float((found - start).square().mean().sqrt()) < 0.05


def test_each_step_is_the_inverse_of_equation_13_of_song_et_al() -> None:
    schedule, steps = CosineSchedule(40), [3, 11, 24, 40]
    process = GaussianProcess(schedule)
    oracle = MixtureOracle(process)
    listed = ListedTimes([step / 40 for step in reversed(steps)])
    found = DDIM(process, 4, time_grid=listed, clipping=NoClipping()).encode(oracle, gaussian_images(), Condition())

    def epsilon(x_t: Tensor, step: int) -> Tensor:
        x_0 = oracle(x_t, torch.full((5,), step / 40, dtype=torch.float64), Condition()).x_0
        return (x_t - math.sqrt(level[step]) * x_0) / math.sqrt(1 - level[step])

    level = [1.0, *schedule.alpha_bar.tolist()]
    ratio = [math.sqrt((1 - each) / each) for each in level]
    bar = gaussian_images()  # x / sqrt(alpha)
    # The clean image contains no noise: the first step evaluates the denoiser at its end.
    bar = bar + ratio[steps[0]] * epsilon(math.sqrt(level[steps[0]]) * bar, steps[0])
    for s, t in pairwise(steps):
        bar = bar + (ratio[t] - ratio[s]) * epsilon(math.sqrt(level[s]) * bar, s)
    torch.testing.assert_close(found, math.sqrt(level[40]) * bar, rtol=1e-9, atol=1e-9)


def test_noise_is_returned_in_units_of_the_initial_std() -> None:
    process = GaussianProcess(EDMSchedule())
    found = DDIM(process, 1, clipping=NoClipping()).encode(Spy(), torch.full(SHAPE, 0.25), Condition())
    # One step to sigma = 80: x = image + 80 (image - 0.5) / 80, divided by the initial std of 80.
    torch.testing.assert_close(found, torch.full(SHAPE, (0.25 + (0.25 - 0.5)) / 80))


def test_encoding_visits_the_times_in_reverse_with_one_evaluation_per_step() -> None:
    process, spy = GaussianProcess(CosineSchedule(40)), Spy()
    listed = ListedTimes([1.0, 0.6, 0.275, 0.075])
    DDIM(process, 4, time_grid=listed).encode(spy, gaussian_images(), Condition())
    assert [t.tolist() for _, t, _ in spy.calls] == [[t] * 5 for t in (0.075, 0.075, 0.275, 0.6)]


def test_schedules_with_a_first_step_without_noise_or_a_last_step_without_signal_are_encoded() -> None:
    for schedule in (LinearSchedule(50, 0.0, 0.98), JSDSchedule(50), CosineSchedule(50, zero_terminal_snr=True)):
        process = GaussianProcess(schedule)
        noise = DDIM(process, 50, clipping=NoClipping()).encode(
            GaussianOracle(process, 0.3, 0.5), gaussian_images(), Condition()
        )
        assert bool(noise.isfinite().all())
        assert float(noise.std()) == pytest.approx(1.0, abs=0.25)


def test_estimates_are_clipped_as_in_sampling() -> None:
    process = GaussianProcess(CosineSchedule(40))
    oracle, images = GaussianOracle(process, 0.9, 0.5), gaussian_images()
    clipped = DDIM(process, 10).encode(oracle, images, Condition())
    free = DDIM(process, 10, clipping=NoClipping()).encode(oracle, images, Condition())
    assert float((clipped - free).abs().max()) > 0.01


def test_encoding_computes_no_gradients() -> None:
    process = GaussianProcess(CosineSchedule(40))
    images = gaussian_images().requires_grad_()
    assert not DDIM(process, 4).encode(GaussianOracle(process), images, Condition()).requires_grad


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_encoding_with_eta_above_0_is_refused(eta: float) -> None:
    sampler = DDIM(GaussianProcess(CosineSchedule(40)), num_steps=4, eta=eta)
    with pytest.raises(ValueError, match=f"eta must be 0 to encode images .* got {eta}"):
        sampler.encode(Spy(), torch.zeros(SHAPE), Condition())
