"""The forms in which samplers take their process, noise and condition, and the errors for other objects."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Estimate
from diffusion_lab.guidance import Autoguidance, ClassifierFreeGuidance, Guidable, Strength
from diffusion_lab.networks import Condition
from diffusion_lab.process import CosineSchedule, Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import (
    DDIM,
    RK45,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSDE,
    Euler,
    GivenNoise,
    Heun,
    PredictorCorrector,
    UniPC,
)
from support.small_runs import small_module

SHAPE = (3, 8, 6)
SCHEDULE = LinearSchedule(20)
DETERMINISTIC = [DDIM, Euler, Heun, DPMSolver, UniPC, RK45]
STOCHASTIC = [Ancestral, DPMSolverSDE, AnnealedLangevin, PredictorCorrector]


def by_label(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
    """Estimate an image of the brightness label / 10, or 0.5 without labels."""
    level = torch.full((len(x_t),), 0.5) if condition.label is None else condition.label / 10
    return Estimate(level.view(-1, 1, 1, 1).expand_as(x_t).to(x_t))


@pytest.mark.parametrize("build", [*DETERMINISTIC, *STOCHASTIC])
def test_every_sampler_takes_a_schedule_for_its_process_and_labels_or_nothing_for_the_condition(build: Any) -> None:
    sampler = build(SCHEDULE, num_steps=4)
    assert sampler == build(GaussianProcess(SCHEDULE), num_steps=4)

    def sample(*condition: Any) -> Tensor:
        images: Tensor = sampler.sample(by_label, ImageNoise(5, SHAPE), *condition)
        return images.mean(dim=(1, 2, 3))

    torch.testing.assert_close(sample(), torch.full((5,), 0.5), rtol=0, atol=0.05)
    assert torch.equal(sample(), sample(Condition()))
    label = torch.tensor([1, 3, 5, 7, 9])
    torch.testing.assert_close(sample(label), label / 10, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match=r"`condition` must be a Condition, labels .* or None, got 3"):
        sample(3)


@pytest.mark.parametrize("build", DETERMINISTIC)
def test_a_tensor_is_the_initial_noise_of_a_sampler_that_adds_none(build: Any) -> None:
    denoiser = Denoiser(lambda x_t, time: x_t / 2, GaussianProcess(SCHEDULE), Epsilon())
    sampler = build(SCHEDULE, num_steps=4)
    images = sampler.sample(denoiser, ImageNoise(range(5), SHAPE).draw())
    assert torch.equal(images, sampler.sample(denoiser, ImageNoise(range(5), SHAPE)))
    assert images.shape == (5, *SHAPE)


@pytest.mark.parametrize("build", STOCHASTIC)
@pytest.mark.parametrize("wrap", [lambda noise: noise, GivenNoise], ids=["tensor", "GivenNoise"])
def test_a_sampler_that_adds_noise_refuses_to_add_the_initial_noise_again(build: Any, wrap: Any) -> None:
    with pytest.raises(ValueError, match="`noise` must be a source of independent noise for a sampler that adds noise"):
        build(SCHEDULE, num_steps=4).sample(by_label, wrap(torch.randn(5, *SHAPE)))


@pytest.mark.parametrize("build", [*DETERMINISTIC, *STOCHASTIC])
def test_every_sampler_names_what_it_accepts_if_another_object_is_given(build: Any) -> None:
    for settings, message in (
        ({"process": 3}, "`process` must be a diffusion_lab.GaussianProcess, got 3"),
        ({"time_grid": [1.0, 0.5]}, "`time_grid` must be a diffusion_lab.TimeGrid .* an object of the class list"),
        ({"clipping": None}, "`clipping` must be a diffusion_lab.Clipping .* got None"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**{"process": SCHEDULE, **settings})
    sampler = build(SCHEDULE, num_steps=4)
    with pytest.raises(ValueError, match=r"`noise` must be a tensor .* or an object with the method draw.*, got 16"):
        sampler.sample(by_label, 16)
    with pytest.raises(ValueError, match=r"must return an Estimate, .*Tensor from predict; .*Denoiser\(predict, proc"):
        sampler.sample(predict, ImageNoise(5, SHAPE))
    with pytest.raises(ValueError, match=r"function of \(x_t, t, condition\) .*, got two; .* Denoiser\(two, proce"):
        sampler.sample(two, ImageNoise(5, SHAPE))


def test_a_module_in_training_is_no_denoiser_no_network_and_no_process() -> None:
    module: Any = small_module()
    for call, message in (
        (
            lambda: DDIM(module.process, num_steps=4).sample(module, ImageNoise(5, SHAPE)),
            r"`denoiser` .* DiffusionModule; module.denoiser\(\)",
        ),
        (lambda: Denoiser(module, module.process, Epsilon()), r"`network` .* DiffusionModule; module.denoiser\(\)"),
        (
            lambda: DDIM(module),
            "`process` .*GaussianProcess, got an object of the class DiffusionModule; pass its .process",
        ),
        (lambda: DDIM(module.denoiser()), "`process` .*, got an object of the class Denoiser; pass its .process"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    images = DDIM(module.process, num_steps=4).sample(module.denoiser(), ImageNoise(2, (1, 8, 8)))
    assert images.shape == (2, 1, 8, 8)


def two(x_t: Tensor, time: Tensor) -> Tensor:
    return x_t


@pytest.mark.parametrize("build", [*DETERMINISTIC, *STOCHASTIC])
def test_every_sampler_refuses_a_denoiser_of_another_process_with_and_without_guidance(build: Any) -> None:
    sampler, noise, label = build(SCHEDULE, num_steps=4), ImageNoise(5, SHAPE), torch.arange(5)
    denoiser, other = (
        Denoiser(lambda x_t, time: x_t / 2, GaussianProcess(schedule), Epsilon())
        for schedule in (SCHEDULE.continuous, CosineSchedule())
    )
    guidable, strength = Guidable.from_denoiser(other), Strength(2.0)
    assert bool(sampler.sample(denoiser, noise).isfinite().all())
    for given in (other, ClassifierFreeGuidance(guidable, 10, strength), Autoguidance(guidable, other, strength)):
        with pytest.raises(ValueError, match=r"`denoiser` must have the process .*\(LinearSch.*, got .* CosineSch"):
            sampler.sample(given, noise, label)
    with pytest.raises(ValueError, match=r"`guide` must be trained with the schedule .*CosineSchedule.*, got "):
        Autoguidance(guidable, denoiser, strength)


def predict(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return x_t


@pytest.mark.parametrize(("build", "name"), [(Euler, "churn"), (Heun, "churn"), (Ancestral, "variance")])
def test_the_settings_of_a_sampler_are_checked(build: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a diffusion_lab.{name.title()}.*, got 0.5"):
        build(SCHEDULE, **{name: 0.5})
