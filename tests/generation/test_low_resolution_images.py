"""Super-resolution: low-resolution images of seeds, and cascades."""

import pytest
import torch
from torch import Tensor

from diffusion_lab.generation.cascade import CascadeImages
from diffusion_lab.generation.low_resolution_images import DownsampledImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.networks import Labels
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import ImageNoise, Purpose, permutation
from support.small_cascades import CHANNELS, LOW, base, upsampler
from support.small_runs import FewImages, fit, small_module


def cascade(noise: float = 0.0, batch_size: int = 4, labels: Labels | None = None, **settings: int) -> SeededImages:
    first = SeededImages(base(labels=labels), batch_size=batch_size, **settings)  # type: ignore[arg-type]
    source = CascadeImages(first, LOW, noise)
    return SeededImages(upsampler(labels), batch_size=batch_size, condition_images=source)


@pytest.mark.full
def test_a_network_learns_from_the_low_resolution_images_of_its_data() -> None:
    plain, conditioned = small_module(), small_module(**CHANNELS)
    losses = [
        float(fit(m, 100, low_resolution=low).callback_metrics["loss"])
        for m, low in ((plain, None), (conditioned, LOW))
    ]
    assert losses[1] < losses[0]  # the images are random: only their low-resolution images can reduce the loss


def test_image_k_of_a_cascade_is_generated_from_image_k_of_the_previous_stage() -> None:
    images = cascade()
    first = SeededImages(base(), batch_size=4).generate(range(4))
    condition = LOW.condition(None, first.float() / 127.5 - 1, torch.zeros(4), torch.zeros(4, 1, 4, 4))
    expected = to_uint8(upsampler().sample(range(4), condition, stage=1))
    assert torch.equal(images.generate(range(4)), expected)
    assert torch.equal(images.generate(range(2, 4)), expected[2:])


def test_stages_have_different_noise() -> None:
    first, second = (ImageNoise(range(2), (1, 8, 8), stage=stage).draw() for stage in (0, 1))
    third = ImageNoise(range(2), (1, 8, 8), stage=1, purpose=Purpose.SAMPLED_CONDITION).draw()
    for one, other in ((first, second), (first, third), (second, third)):
        assert abs(float((one * other).mean())) < 0.4
        assert not torch.equal(one, other)
    assert torch.equal(first, ImageNoise(range(2), (1, 8, 8)).draw())


def test_the_noise_of_the_low_resolution_images_is_a_function_of_the_seed() -> None:
    plain, noisy = cascade(), cascade(noise=0.4)
    assert not torch.equal(plain.generate(range(4)), noisy.generate(range(4)))
    assert torch.equal(noisy.generate(range(4)), cascade(noise=0.4).generate(range(4)))
    assert noisy.condition_images is not None
    condition = noisy.condition_images.condition(range(4), None, torch.device("cpu"))
    assert condition.low_resolution_noise is not None
    assert condition.low_resolution_noise.flatten().tolist() == pytest.approx([0.4] * 4)


def test_all_stages_are_conditioned_on_the_same_class() -> None:
    labels = Labels(3, 0.2)
    assert cascade(labels=labels).labels(range(5)).tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert cascade(labels=labels, label=2).labels(range(5)).tolist() == [2] * 5  # type: ignore[union-attr]


def test_images_of_a_data_set_are_upsampled_in_random_order_with_their_classes() -> None:
    data = FewImages().load()
    source = DownsampledImages(data, "train", LOW)
    images = SeededImages(upsampler(Labels(3, 0.2)), batch_size=4, condition_images=source)
    order = permutation(seed=0, epoch=0, size=50)[[48, 49, 0, 1]]
    means: Tensor = data.gather(order).float().view(4, 1, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(source.pixels(range(48, 52)).float(), means, rtol=0, atol=0.51)
    assert images.labels(range(48, 52)).tolist() == data.label[order].tolist()  # type: ignore[union-attr]


def test_protocol_and_identity_depend_on_the_low_resolution_images() -> None:
    generated = cascade()
    source = DownsampledImages(FewImages().load(), "train", LOW, 0.1)
    data = SeededImages(upsampler(), batch_size=4, condition_images=source)
    assert generated.protocol()["low_resolution"]["from"]["sampler"]["name"] == "DDIM"
    assert data.protocol()["low_resolution"]["from"] == "images of train"
    assert data.protocol()["low_resolution"]["noise"] == 0.1
    identities = {images.identity("32-true") for images in (generated, cascade(noise=0.2), data)}
    assert len(identities) == 3
    other = SeededImages(base(), batch_size=4)
    other.module.ema.network.get_parameter("conv_in.bias").data += 0.1
    changed = SeededImages(upsampler(), batch_size=4, condition_images=CascadeImages(other, LOW))
    assert changed.identity("32-true") not in identities


def test_stages_that_do_not_fit_together_are_refused() -> None:
    plain = SeededImages(base(side=8), batch_size=4)
    with pytest.raises(ValueError, match=r"`cascade` must list .*resolution=8 .*, got a run with 4"):
        CascadeImages(plain, LOW)
    with pytest.raises(ValueError, match=r"low_resolution_noise must be in \[0, 0.5\] .* got 0.6"):
        cascade(noise=0.6)
    with pytest.raises(ValueError, match="`condition_images` must be given for a network that is conditioned"):
        SeededImages(upsampler(), batch_size=4)
    source = CascadeImages(SeededImages(base(), batch_size=4), LOW)
    with pytest.raises(ValueError, match=r"`condition_images` .* must be None .*, got images with 1 channels"):
        SeededImages(small_module(), batch_size=4, condition_images=source)
    with pytest.raises(ValueError, match=r"`cascade` must list .* the previous run \(0\), got a run with 3 classes"):
        SeededImages(upsampler(Labels(3)), batch_size=4, condition_images=source)
