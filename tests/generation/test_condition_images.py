"""Sources of condition images: the same for each seed in any batch, and named in fingerprints."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion_lab.data.images import Images
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.reconstruction import Reconstruction
from diffusion_lab.generation.condition_images import ConditionImages, MaskedImages, PairedImages
from diffusion_lab.generation.conditions_of_images import conditions_of_images
from diffusion_lab.generation.low_resolution_images import DownsampledImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.masking import Halves, RandomRectangles, Strokes
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import permutation
from support.small_runs import FewImages, small_module

CPU = torch.device("cpu")
IMAGES = FewImages().load()
PAIRED = IMAGES.with_condition(Images(255 - IMAGES.gather(torch.arange(50)), IMAGES.label))
SOURCES = [MaskedImages(IMAGES, "train", Strokes()), PairedImages(PAIRED, "train")]


def seeded(source: ConditionImages, batch_size: int) -> SeededImages:
    torch.manual_seed(0)
    module = small_module(condition_channels=source.channels)
    for parameter in module.ema.network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return SeededImages(module.eval(), batch_size=batch_size, condition_images=source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_the_condition_of_a_seed_does_not_depend_on_the_batch(source: ConditionImages) -> None:
    whole, part = (source.condition(seeds, None, CPU).image for seeds in (range(40, 60), range(48, 52)))
    assert whole is not None
    assert part is not None
    assert torch.equal(whole[8:12], part)
    images = seeded(source, batch_size=4)
    torch.testing.assert_close(
        images.generate(range(8, 12)), seeded(source, batch_size=12).generate(range(8, 12)), atol=1, rtol=0
    )
    assert not torch.equal(images.generate(range(8, 12)), images.generate(range(12, 16)))


def test_the_images_are_those_of_the_data_set_in_random_order_with_their_classes() -> None:
    order = permutation(seed=0, epoch=0, size=50)[[48, 49, 0, 1]]
    for source in SOURCES:
        label = source.labels(range(48, 52))
        assert label is not None
        assert label.tolist() == IMAGES.label[order].tolist()
    masked, paired = (source.condition(range(48, 52), None, CPU).image for source in SOURCES)
    assert masked is not None
    assert paired is not None
    original, known = from_uint8(IMAGES.gather(order)), masked[:, 1:] == 1
    assert torch.equal(masked[:, :1], torch.where(known, original, torch.zeros(())))
    torch.testing.assert_close(paired, -original)
    assert torch.equal(SOURCES[1].pictures(range(48, 52)), 255 - IMAGES.gather(order))
    shown = SOURCES[0].pictures(range(48, 52))
    assert set(shown[~known].tolist()) == {128}  # gray
    assert torch.equal(shown[known], IMAGES.gather(order)[known])


def test_protocols_name_the_images_and_the_holes() -> None:
    protocol = seeded(SOURCES[0], 4).protocol()["condition"]
    assert protocol["from"] == "images of train"
    assert protocol["masking"]["name"] == "Strokes"
    others = [
        MaskedImages(IMAGES, "train", RandomRectangles()),
        SOURCES[1],
        PairedImages(PAIRED.with_condition(IMAGES), "train"),
    ]
    identities = {seeded(source, 4).identity("32-true") for source in (SOURCES[0], *others)}
    assert len(identities) == 4


def test_the_kind_of_the_condition_images_is_that_of_the_training() -> None:
    assert conditions_of_images(IMAGES, "train") is None
    kinds = [
        conditions_of_images(IMAGES, "train", low_resolution=LowResolution(4)),
        conditions_of_images(IMAGES, "train", masking=Halves()),
        conditions_of_images(PAIRED, "train"),
    ]
    assert [type(kind) for kind in kinds] == [DownsampledImages, MaskedImages, PairedImages]
    with pytest.raises(
        ValueError, match="`condition_images` must be given for a network that is conditioned on images"
    ):
        SeededImages(small_module(condition_channels=1))
    with pytest.raises(ValueError, match=r"`condition_images` .* must have 1 channels .*, got images with 2 channels"):
        SeededImages(small_module(condition_channels=1), condition_images=SOURCES[0])
    with pytest.raises(ValueError, match="the train images must have condition images, got images without them"):
        PairedImages(IMAGES, "train")


def test_a_mean_over_images_has_the_condition_of_each_image() -> None:
    values = []
    for source, images in zip(SOURCES, (IMAGES, PAIRED), strict=True):
        evaluator = Evaluator(seeded(source, 4), None, 2)
        quantity = Reconstruction(small_module().sampler)
        number = evaluator.mean(MeanOverImages(quantity, num_images=6, split="train"), images)
        again = replace(evaluator, images=seeded(source, 3)).mean(
            MeanOverImages(quantity, num_images=6, split="train"), images
        )
        assert number.value == pytest.approx(again.value, rel=1e-4)
        assert number.fingerprint["condition"]["from"] == "images of train"
        values.append(number.value)
    assert values[0] != pytest.approx(values[1], rel=0.01)
    with pytest.raises(ValueError, match="the images of the data set must have condition images for this network"):
        SOURCES[1].condition_of(torch.zeros(1, 1, 8, 8), None, None, range(1))
