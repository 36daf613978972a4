"""Estimated duration of the images of sample and evaluate."""

import re
from typing import Any

import pytest

from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.networks import Labels
from diffusion_lab.runs.operations import Rates
from diffusion_lab.runs.sampling_cost import print_sampling_cost, seconds_per_image
from diffusion_lab.samplers import DDIM, Heun
from support.small_runs import small_module


def seconds(**settings: Any) -> float:
    module = small_module(Labels(3, 0.2))
    sampler = settings.pop("sampler", DDIM)(module.process, num_steps=settings.pop("num_steps", 4))
    images = SeededImages(module, sampler=sampler, batch_size=12, **settings)
    return seconds_per_image(images, Rates(1e9, 1e9), is_half=False)


def test_an_image_takes_the_time_of_the_evaluations_of_its_sampler() -> None:
    one = seconds()
    assert one > 0
    assert seconds(num_steps=8) == pytest.approx(2 * one)
    assert seconds(guidance=Guidance(Strength(2.0))) == pytest.approx(2 * one)
    assert seconds(sampler=Heun) == pytest.approx(7 / 4 * one)


def test_the_duration_and_the_evaluations_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    images = SeededImages(small_module(), batch_size=12)
    print_sampling_cost(images, 1000, "32-true")
    assert re.fullmatch(
        r"cost: about \S+ (seconds|minutes|hours) for 1,000 images \(4 evaluations of the network each\)\n",
        capsys.readouterr().out,
    )


def test_the_printed_duration_names_the_evaluations_for_guidance_and_the_metrics(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = SeededImages(small_module(Labels(3, 0.2)), batch_size=12, guidance=Guidance(Strength(2.0)))
    print_sampling_cost(images, 10, "32-true", measures=True)
    expected = (
        "for 10 images (8 evaluations of the network each: 4 times 2 for guidance), plus the time of the metrics\n"
    )
    assert capsys.readouterr().out.endswith(expected)
