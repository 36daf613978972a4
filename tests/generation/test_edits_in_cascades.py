"""Edits and frames of a cascade: the first network edits, the next networks upsample its results."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.edits import (
    Colorize,
    Deblur,
    Denoise,
    Half,
    Inpaint,
    Interpolate,
    Invert,
    Morph,
    RandomPixels,
    Sources,
    Style,
    Sweep,
    Task,
    TransparentPixels,
    Variation,
    Walk,
    slerp,
)
from diffusion_lab.errors import UserError
from diffusion_lab.generation import CascadeImages, EditedImages, EditSources, SeededImages
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.inverse_problems import DDRM, PiGDM
from diffusion_lab.networks import Labels
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.runs.cost.operations import Rates
from diffusion_lab.runs.cost.sampling import pass_seconds_per_image, seconds_per_image
from support.small_cascades import LOW, base, upsampler
from support.small_runs import FewImages

LABELS = Labels(3, dropout=0.2)
IMAGES = FewImages().load().select(torch.arange(3))


def small_and_large() -> tuple[Images, Images]:
    """Return images of 4 x 4 pixels, and images of 8 x 8 pixels with four equal pixels for each of theirs."""
    small = IMAGES.gather(torch.arange(3))[..., ::2, ::2]
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return Images(small, IMAGES.label, IMAGES.class_names), Images(large, IMAGES.label, IMAGES.class_names)


def upsampled(images: Any, labels: Labels | None, noise: float = 0.0) -> SeededImages:
    source = CascadeImages(images, LOW, noise)
    return SeededImages(upsampler(labels), batch_size=images.batch_size, condition_images=source)


def first_of(batch_size: int) -> SeededImages:
    return SeededImages(base(labels=LABELS), batch_size=batch_size)


def edited(
    task: Task, *, labels: Labels | None = None, batch_size: int = 3, label: int | None = None, **options: Any
) -> EditedImages:
    """Return the results of the last network."""
    noise, has_labels = options.pop("noise", 0.0), options.pop("has_labels", True)
    sources = EditSources(options.pop("images", IMAGES), "train", has_labels)
    first = SeededImages(base(labels=labels), batch_size=batch_size, label=label)
    small = EditedImages(first, sources.at(4), task, **options)
    assert task.upsampling is not None
    return EditedImages(upsampled(small, labels, noise), sources, task.upsampling, **options)


def before(images: Any) -> Any:
    """Return the images of the previous network of a cascade."""
    return images.condition_images.images


def all_pixels(images: Any) -> Tensor:
    return torch.cat([images.generate(batch) for batch in images.batches(range(images.num_images))])


def levels(first: Tensor, second: Tensor) -> int:
    """Return the largest difference in gray levels."""
    return int((first.int() - second.int()).abs().max())


def test_known_pixels_are_kept_to_the_gray_level_at_the_last_resolution() -> None:
    images = edited(Inpaint(Half("left"), DDRM()), noise=0.1)
    pixels, sources = all_pixels(images), IMAGES.gather(torch.arange(3))
    assert torch.equal(pixels[..., 4:], sources[..., 4:])
    assert levels(pixels[..., :4], sources[..., :4]) > 20
    means = sources.float().view(3, 1, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(all_pixels(before(images))[..., 2:].float(), means[..., 2:], rtol=0, atol=0.51)


@pytest.mark.parametrize("task", [Inpaint(Half(), PiGDM()), Variation(0.6)])
def test_the_first_network_makes_the_results_that_it_makes_alone_from_smaller_sources(task: Task) -> None:
    small, large = small_and_large()
    images = edited(task, labels=LABELS, images=large, num_results=2, seed=5)
    alone = EditedImages(
        SeededImages(base(labels=LABELS), batch_size=3), EditSources(small, "train", True), task, num_results=2, seed=5
    )
    assert torch.equal(all_pixels(before(images)), all_pixels(alone))


def test_a_downsampled_measurement_has_the_mean_of_the_noise_of_its_pixels() -> None:
    task, sources = Denoise(noise=0.2), EditSources(IMAGES, "train").batch(range(3), torch.device("cpu"))
    original, small = task.measurement(sources), task.measurement(sources.at(4))
    torch.testing.assert_close(small.y, original.y.view(3, 1, 4, 2, 4, 2).mean(dim=(3, 5)))
    assert small.noise_std == pytest.approx(0.1)
    assert float((small.y - sources.at(4).images).std()) == pytest.approx(0.1, rel=0.3)


def test_the_next_network_upsamples_results_as_it_upsamples_samples() -> None:
    images = edited(Variation(0.6), noise=0.3)
    assert torch.equal(all_pixels(images), upsampled(before(images), None, 0.3).generate(range(3)))
    assert (images.num_steps, before(images).num_steps) == (4, 2)
    later = edited(Variation(0.6), noise=0.3, seed=1, images=IMAGES.select(torch.tensor([1, 2])))
    first = edited(Variation(0.6), noise=0.3)
    assert levels(all_pixels(later)[0], all_pixels(first)[1]) <= 1  # the same source, and seed 1 in all networks


@pytest.mark.parametrize("task", [Inpaint(Half(), DDRM(), noise=0.1), Style(0.6)])
def test_results_of_a_cascade_do_not_depend_on_the_batch(task: Task) -> None:
    by_size = [
        all_pixels(edited(task, labels=LABELS, label=1, num_results=2, noise=0.2, batch_size=size)) for size in (6, 4)
    ]
    assert levels(*by_size) <= 1


def test_the_frames_at_the_stops_are_samples_of_the_cascade_and_the_noise_of_others_is_between_theirs() -> None:
    first, walk = first_of(4), Walk(num_frames=6, seeds=[4, 2, 7])
    samples = SeededImages(upsampler(LABELS), batch_size=4, condition_images=CascadeImages(first, LOW, 0.3))
    frames = FrameImages(upsampled(FrameImages(first, walk), LABELS, 0.3), walk)
    shown = all_pixels(frames)
    for frame, seed in ((0, 4), (2, 2), (4, 7)):
        assert levels(shown[frame], samples.generate(range(seed, seed + 1))[0]) <= 1
    stops = ImageNoise([4, 2], (1, 8, 8), stage=1).draw()
    assert torch.equal(frames.noise(1), slerp(stops[0], stops[1], 0.5))
    added = before(frames).condition_noise(range(3), (1, 4, 4), 1)
    torch.testing.assert_close(added[1], slerp(added[0], added[2], 0.5))
    again = FrameImages(upsampled(FrameImages(first_of(3), walk), LABELS, 0.3), walk)
    assert levels(all_pixels(again), shown) <= 1


def test_all_networks_receive_the_classes_of_a_morph_and_only_the_first_the_scales_of_a_sweep() -> None:
    morph = Morph(num_frames=3)
    first = SeededImages(base(labels=LABELS), batch_size=4, label=[2, 0])
    frames = FrameImages(upsampled(FrameImages(first, morph), LABELS), morph)
    assert [frames.classes(k) for k in range(3)] == [{2: 1.0}, {2: 0.5, 0: 0.5}, {0: 1.0}]
    weights = frames._condition(range(4)).label
    assert weights is not None
    assert weights[1].tolist() == [0.5, 0, 0.5, 0]
    sweep = Sweep(num_frames=2)
    frames = FrameImages(upsampled(FrameImages(first_of(2), sweep), None), sweep)
    assert [frames._scale(1), before(frames)._scale(1)] == [None, 8.0]
    assert frames._condition(range(2)).label is None  # the network has no classes
    assert all_pixels(frames).shape == (2, 1, 8, 8)


def test_a_path_through_source_images_is_upsampled_with_noise_of_the_seed() -> None:
    sources, path = EditSources(IMAGES.select(torch.arange(2)), "train", True), Interpolate(num_frames=3)
    small = FrameImages(first_of(4), path, sources=sources.at(4), seed=5)
    frames = FrameImages(upsampled(small, LABELS), path, sources=sources, seed=5)
    assert (small.inverted is None, frames.inverted, frames.stop_labels) == (False, None, [0, 1])
    expected = SeededImages(upsampler(LABELS), batch_size=4, condition_images=CascadeImages(small, LOW))
    condition = expected._condition(range(4)).select(torch.tensor([0]))
    alone = upsampler(LABELS).sample([5], condition, stage=1)
    assert levels(all_pixels(frames)[0], ((alone + 1) * 127.5).clamp(0, 255).round().byte()[0]) <= 1


def test_results_without_a_known_class_have_none_in_all_networks() -> None:
    images = edited(Variation(), labels=LABELS, has_labels=False)
    assert (images.labels(range(3)), images.protocol()["label"]) == (None, None)
    assert images._condition(range(3)).label.tolist() == [3, 3, 3]  # type: ignore[union-attr]
    of_sources = edited(Variation(), labels=LABELS)
    assert of_sources.labels(range(3)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert of_sources.protocol()["label"] == "class of the source"
    assert edited(Style(), labels=LABELS, label=2).protocol()["label"] == 2


def test_fingerprints_and_caches_depend_on_all_networks() -> None:
    images = edited(Variation(0.6), seed=3)
    protocol = images.protocol()
    task = {"name": "Variation", "strength": 0.6, "pasted": False}
    assert protocol["task"] == task | {"upsampled": True}
    assert protocol["low_resolution"]["from"]["task"] == task
    assert protocol["low_resolution"]["from"]["sources"]["resolution"] == 4
    assert len(protocol["low_resolution"]["from"]["weights_sha256"]) == 64
    others = [edited(Variation(0.6), seed=3) for _ in range(2)]
    before(others[1]).module.ema.network.get_parameter("conv_in.bias").data += 0.1
    assert [other.identity("32-true") == images.identity("32-true") for other in others] == [True, False]


def test_the_cost_of_an_edit_has_all_networks_of_the_cascade() -> None:
    rates, images = Rates(1e9, 1e9), edited(Variation(0.6))
    both, first = (seconds_per_image(each, rates, is_half=False) for each in (images, before(images)))
    assert both == pytest.approx(first + 4 * pass_seconds_per_image(images, rates, is_half=False))
    assert first == pytest.approx(2 * pass_seconds_per_image(before(images), rates, is_half=False))


def test_a_downsampled_pixel_is_known_only_if_all_its_pixels_are() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[..., 3, 3:6] = 255
    sources = Sources(torch.zeros(1, 1, 8, 8), [0], mask)
    hole = Inpaint(TransparentPixels()).hole(sources.at(4))
    assert hole[0, 0].nonzero().tolist() == [[1, 1], [1, 2]]


def test_the_gray_image_of_a_downsampled_image_is_the_downsampled_gray_image() -> None:
    sources = Sources(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), [0, 1])
    small = Sources(sources.at(4).images, [0, 1])
    torch.testing.assert_close(Colorize().measurement(sources.at(4)).y, Colorize().measurement(small).y)


def test_tasks_and_masks_that_a_cascade_cannot_edit_are_refused() -> None:
    assert [task.upsampling for task in (Deblur(), Invert())] == [None, None]
    with pytest.raises(UserError, match="`mask` must leave known pixels in the images of 4 x 4 pixels of `run`"):
        edited(Inpaint(RandomPixels(0.9)))
    with pytest.raises(ValueError, match=r"`cascade` must list runs .* above that of `run` \(16\), got a run with 8"):
        EditSources(IMAGES, "train").at(16)
    sources = Sources(torch.zeros(1, 1, 9, 9), [0])
    with pytest.raises(UserError, match=r"multiples of 4 .* for a measurement with noise, got a run with 9"):
        Denoise().measurement(sources.at(4))
