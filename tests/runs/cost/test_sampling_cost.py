"""Estimated duration of the images of sample and evaluate."""

import re
from typing import Any

import pytest

from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.networks import Labels
from diffusion_lab.runs.cost.operations import Rates
from diffusion_lab.runs.cost.sampling import idle_ranks, print_sampling_cost, seconds_per_image
from diffusion_lab.samplers import DDIM, RK45, Heun
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
    print_sampling_cost(images, [range(1000)], "32-true")
    assert re.fullmatch(
        r"cost: about \S+ (seconds|minutes|hours) for 1,000 images in complete batches of 12 "
        r"\(4 evaluations of the network each\)\n",
        capsys.readouterr().out,
    )


def test_the_evaluations_of_a_sampler_with_adaptive_steps_are_typical(capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module()
    images = SeededImages(module, sampler=RK45(module.process, rtol=1e-2, atol=1e-2), batch_size=12)
    print_sampling_cost(images, [range(12)], "32-true")
    assert "(typically 56 evaluations of the network each)" in capsys.readouterr().out


def test_the_printed_duration_names_the_evaluations_for_guidance_and_the_metrics(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = SeededImages(small_module(Labels(3, 0.2)), batch_size=12, guidance=Guidance(Strength(2.0)))
    print_sampling_cost(images, [range(12)], "32-true", measures=True)
    expected = (
        "for 12 images (8 evaluations of the network each: 4 times 2 for guidance), plus the time of the metrics\n"
    )
    assert capsys.readouterr().out.endswith(expected)


@pytest.mark.parametrize(
    ("seeds", "batch_size", "world_size", "expected"),
    [
        ([range(100)], 100, 2, "1 rank has no images .* batch_size=100 for 100 images on 2 ranks; batch_size=50 gives"),
        ([range(100)], 100, 4, "3 ranks have no images .*; batch_size=25 gives each rank a batch"),
        ([range(4)], 16, 3, "2 ranks have no images .*; batch_size=1 gives each rank a batch"),
        ([range(1)], 16, 2, "1 rank has no images .* for 1 image on 2 ranks; fewer ranks are sufficient"),
    ],
)
def test_a_sentence_names_the_batch_size_with_which_all_ranks_work(
    seeds: list[range], batch_size: int, world_size: int, expected: str
) -> None:
    assert re.match(expected, idle_ranks(seeds, batch_size, world_size) or "")


def test_there_is_no_sentence_if_each_rank_has_a_batch() -> None:
    assert idle_ranks([range(101)], 100, 2) is None
    assert idle_ranks([range(90, 110)], 100, 2) is None  # the seeds are in two full batches
    assert idle_ranks([range(10)], 100, 1) is None
    assert idle_ranks([range(0)], 100, 2) is None
