"""Encoding with Heun's method: from images to the noise from which they are generated."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.process import CosineSchedule, EDMSchedule, GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Churn, GivenNoise, Heun, InvertibleSampler, KarrasTimes, NoClipping
from support.every_sampler import Spy
from support.oracles import MixtureOracle, RecordedNoise

PROCESS = GaussianProcess(EDMSchedule())
ORACLE = MixtureOracle(PROCESS)
NOISE = RecordedNoise((2, 1, 4, 3)).draw()
STEPS = (32, 64)


def exact_images() -> Tensor:
    """Return the images to which the exact probability flow maps NOISE."""
    return ORACLE.flow(80 * NOISE, 80.0, 0.0)


def order(errors: list[float]) -> float:
    """Return the slope of the errors for STEPS between the first and the last."""
    return math.log(errors[0] / errors[-1]) / math.log(STEPS[-1] / STEPS[0])


@pytest.mark.parametrize(("build", "of_noise", "of_images"), [(DDIM, 1, 1), (Heun, 2, 3)], ids=["ddim", "heun"])
def test_the_error_of_the_noise_is_of_the_order_of_the_sampler(
    build: type[DDIM | Heun], of_noise: int, of_images: int
) -> None:
    images = exact_images()
    samplers = [build(PROCESS, n, time_grid=KarrasTimes(), clipping=NoClipping()) for n in STEPS]
    noises = [sampler.encode(ORACLE, images) for sampler in samplers]
    assert order([float((noise - NOISE).norm()) for noise in noises]) == pytest.approx(of_noise, abs=0.15)
    # In a round trip, the leading error terms of a method of even order have opposite signs, and cancel.
    results = [each.sample(ORACLE, GivenNoise(noise)) for each, noise in zip(samplers, noises, strict=True)]
    assert order([float((result - images).norm()) for result in results]) == pytest.approx(of_images, abs=0.15)


def test_encoding_takes_as_many_evaluations_as_sampling() -> None:
    for schedule in (EDMSchedule(), CosineSchedule(40)):
        sampler, spy = Heun(GaussianProcess(schedule), num_steps=6), Spy()
        sampler.encode(spy, torch.zeros(2, 1, 4, 5))
        assert len(spy.calls) == sampler.num_evaluations


def test_churn_is_refused() -> None:
    sampler: InvertibleSampler = Heun(PROCESS, churn=Churn(amount=40))
    with pytest.raises(ValueError, match=r"churn\.amount must be 0 to encode images .* got 40"):
        sampler.encode(ORACLE, ImageNoise(range(2), (1, 8, 6)).draw())
