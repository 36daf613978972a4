"""Tasks, with exact denoisers of Gaussian images: variations, inversion, restorations, and pasted pixels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.edits import (
    Colorize,
    CompressedSense,
    Deblur,
    DeblurMotion,
    Denoise,
    Generator,
    Half,
    Inpaint,
    Invert,
    Restoration,
    Sources,
    SuperResolution,
    Task,
    Variation,
)
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems import DDRM, DPS, MMPS, PiGDM
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, VPSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, Churn, Heun, LogSNRTimes, NoClipping, Sampler
from support.oracles import GaussianOracle

PROCESS = GaussianProcess(VPSchedule())
STD = 0.5


def sources(num_images: int, shape: tuple[int, int, int] = (1, 4, 4)) -> Sources:
    images = 0.3 + STD * torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(0))
    return Sources(images, range(num_images))


def generator(sampler: Sampler, num_images: int, shape: tuple[int, int, int] = (1, 4, 4), **options: Any) -> Generator:
    oracle = GaussianOracle(PROCESS, mean=0.3, std=STD)
    return Generator(sampler, oracle, Condition(), ImageNoise(num_images, shape), **options)


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_a_variation_has_the_correlation_with_its_source_that_the_noise_leaves(strength: float) -> None:
    sampler, given = DDIM(PROCESS, num_steps=100, clipping=NoClipping()), sources(1000)
    task, steps = Variation(strength), list[int]()
    results = task.edit(given, generator(sampler, 1000, on_step=lambda k, *_: steps.append(k)))
    assert steps == list(range(1, round(100 * strength) + 1))
    assert task.num_steps(sampler) == task.num_evaluations(sampler) == len(steps)
    # DDIM maps x_t = alpha x_0 + sigma noise linearly to x_0, which keeps the correlation of x_t and x_0.
    t = torch.tensor(sampler.times[-len(steps)], dtype=torch.float64)
    alpha, sigma = map(float, PROCESS.schedule.coefficients(t))
    expected = alpha * STD / math.hypot(alpha * STD, sigma)
    found = torch.corrcoef(torch.stack([given.images.flatten(), results.flatten()]))[0, 1]
    assert float(found) == pytest.approx(expected, abs=0.01)
    assert float(results.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(results.std()) == pytest.approx(STD, rel=0.03)


def test_the_error_of_an_inversion_falls_with_the_number_of_steps() -> None:
    given, errors = sources(4), []
    for num_steps in (10, 40, 160):
        sampler = DDIM(PROCESS, num_steps=num_steps, clipping=NoClipping())
        results = Invert().edit(given, generator(sampler, 4))
        errors.append(float((results - given.images).square().mean().sqrt()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02


def test_the_noise_of_an_inversion_is_standard_normal() -> None:
    sampler = DDIM(PROCESS, num_steps=100, clipping=NoClipping())
    noise = Invert().noise(sources(500), generator(sampler, 500))
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("sampler", "got"),
    [
        (DDIM(PROCESS, num_steps=4, eta=0.5), "sampler.eta=0.5"),
        (Heun(PROCESS, num_steps=4, churn=Churn(1.0)), "sampler.churn.amount=1.0"),
        (Ancestral(PROCESS, num_steps=4), "Ancestral"),
    ],
)
def test_samplers_that_add_noise_cannot_invert(sampler: Sampler, got: str) -> None:
    with pytest.raises(UserError, match=rf"`sampler` must be ddim with sampler\.eta=0 or heun .*, got {got}"):
        Invert().require(sampler, sources(1), None)


def test_pasted_pixels_are_those_of_the_source_unless_they_have_noise() -> None:
    sampler, given = DDIM(PROCESS, num_steps=10), sources(3)
    known = ~Half().hole(given)
    for noise in (0.0, 0.1):
        task = Inpaint(noise=noise)
        results = task.edit(given, generator(sampler, 3))
        assert task.pastes == (noise == 0)
        assert torch.equal(results[known], given.images[known]) == task.pastes


RESTORATIONS = [
    Inpaint(noise=0.1),
    SuperResolution(factor=2, noise=0.1),
    SuperResolution(factor=2, downsampling="bicubic", noise=0.1),
    Deblur(std=0.7, noise=0.1),
    DeblurMotion(length=3.0, noise=0.1),
    Colorize(noise=0.1),
    Denoise(noise=0.1),
    CompressedSense(fraction=0.5, noise=0.1),
]


@pytest.mark.parametrize("task", RESTORATIONS, ids=lambda task: type(task).__name__)
def test_the_residuals_of_restorations_have_the_std_of_the_noise(task: Restoration) -> None:
    shape, draw = (3, 4, 4), torch.Generator().manual_seed(0)
    given = Sources(torch.randn(300, *shape, generator=draw), range(300))  # for which the estimate of pigdm is exact
    sampler = DDIM(PROCESS, num_steps=60, time_grid=LogSNRTimes(), clipping=NoClipping())
    parts = sampler, GaussianOracle(PROCESS), Condition()
    results = task.edit(given, Generator(*parts, ImageNoise(300, shape)))
    # For a sample x of the posterior, E |y - A x|^2 is the variance of the noise, as for the source.
    for images in (results, given.images):
        residual = task.measurement(given).inconsistency(images).square().mean().sqrt()
        assert float(residual) == pytest.approx(0.1, rel=0.06)


@pytest.mark.parametrize("task", RESTORATIONS, ids=lambda task: type(task).__name__)
def test_the_noise_of_a_measurement_depends_on_the_source_only(task: Restoration) -> None:
    given = sources(4, (3, 4, 4))
    again = Sources(given.images[[2, 2]], [2, 2])
    assert torch.allclose(task.measurement(again).y, task.measurement(given).y[[2, 2]], atol=1e-6)


@pytest.mark.parametrize("task", RESTORATIONS, ids=lambda task: type(task).__name__)
def test_pictures_of_measurements_have_the_shape_of_images(task: Restoration) -> None:
    given = sources(2, (3, 4, 4))
    picture = task.picture(given)
    assert picture.shape == given.images.shape
    assert bool(picture.isfinite().all())


def test_a_task_without_measurement_has_no_picture() -> None:
    for task in (Variation(), Invert()):
        assert task.picture(sources(1)) is None
        assert task.measurement(sources(1)) is None


@pytest.mark.parametrize(
    ("posterior", "num_passes"), [(DDRM(), 10), (PiGDM(), 20), (DPS(), 20), (MMPS(num_iterations=5), 70)]
)
def test_gradients_count_as_a_forward_pass_each(posterior: Any, num_passes: int) -> None:
    assert Inpaint(posterior=posterior).num_passes(DDIM(PROCESS, num_steps=10)) == num_passes


@pytest.mark.parametrize("posterior", [PiGDM(), MMPS()])
def test_gradient_methods_restore_through_a_decoder_and_paste_after_it(posterior: Any) -> None:
    sampler, given = DDIM(PROCESS, num_steps=30, clipping=NoClipping()), sources(50)
    oracle = GaussianOracle(PROCESS, mean=0.15, std=STD / 2)  # the latents are half the images

    def edited(task: Inpaint) -> Tensor:
        noise = ImageNoise(50, (1, 4, 4))
        latent = Generator(sampler, oracle, Condition(), noise, lambda images: images / 2, lambda x_0: 2 * x_0)
        return task.edit(given, latent)

    task = Inpaint(posterior=posterior, noise=0.05)
    assert float(task.measurement(given).inconsistency(edited(task)).mean()) < 0.15
    known = ~Half().hole(given)
    assert torch.equal(edited(Inpaint(posterior=posterior))[known], given.images[known])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Variation(0.0), "strength must be above 0 \\(which would return the source image\\)"),
        (lambda: Variation(1.0), "and below 1 \\(which would return a new image\\), got 1.0"),
        (lambda: Inpaint(noise=-1.0), "noise must be a finite number of at least 0, got -1.0"),
        (lambda: Denoise(noise=0.0), "noise must be above 0 for task=denoise"),
        (lambda: SuperResolution(factor=1), "factor must be at least 2"),
        (lambda: SuperResolution(downsampling="box"), "downsampling must be area or bicubic, got box"),  # type: ignore[arg-type]
    ],
)
def test_other_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_tasks_are_named_by_their_choices() -> None:
    tasks: list[Task] = [*RESTORATIONS, Variation(), Invert()]
    assert {task.name for task in tasks} >= {"inpaint", "super_resolution", "deblur", "variation", "invert"}
