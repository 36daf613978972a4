import pytest
import torch
import torch.nn.functional as F

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition
from diffusion_lab.randomness import Draws
from support.small_runs import FewImages, first_batch


def test_a_small_pixel_is_the_mean_of_those_that_it_covers() -> None:
    images = torch.randn(5, 3, 8, 12)
    small = LowResolution(4).downsample(images)
    assert small.shape == (5, 3, 4, 4)
    torch.testing.assert_close(small[2, 1, 3, 0], images[2, 1, 6:8, 0:3].mean())
    assert torch.equal(LowResolution(8).downsample(images[..., :8]), images[..., :8])


def test_images_that_are_smaller_already_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resolution must be at most the resolution of the images \(8\), got 9"):
        LowResolution(9).downsample(torch.zeros(2, 1, 8, 8))


def test_noise_of_a_level_keeps_the_size_of_an_image_of_unit_size_and_is_told() -> None:
    low, small, noise = LowResolution(4, max_noise=0.8), torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    level = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8])
    told = low.condition(torch.arange(5), small, level, noise)
    assert told.image is not None
    assert told.low_resolution_noise is not None
    torch.testing.assert_close(told.image[0], small[0])
    torch.testing.assert_close(told.image[3], 0.8 * small[3] + 0.6 * noise[3])
    assert torch.equal(told.low_resolution_noise, level)
    assert (low.num_channels, LowResolution(4).num_channels) == (1, 0)


def test_without_noise_in_training_nothing_is_told_of_it() -> None:
    small = torch.randn(2, 1, 4, 4)
    told = LowResolution(4).condition(None, small, torch.zeros(2), torch.randn(2, 1, 4, 4))
    assert told == Condition(image=small)
    with pytest.raises(ValueError, match=r"level must be in \[0, max_noise=0.0\], got 0.1"):
        LowResolution(4).condition(None, small, torch.full((2,), 0.1), small)


@pytest.mark.parametrize(
    ("settings", "message"),
    [((0,), "resolution must be at least 1, got 0"), ((4, 1.5), r"max_noise must be in \[0, 1\], got 1.5")],
)
def test_settings_out_of_range_are_refused(settings: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowResolution(*settings)  # type: ignore[arg-type]


def test_a_batch_brings_the_small_images_of_its_images() -> None:
    plain = first_batch()
    batch = first_batch(low_resolution=LowResolution(4))
    assert torch.equal(batch.x_0, plain.x_0)
    assert batch.image is not None
    torch.testing.assert_close(batch.image, F.avg_pool2d(plain.x_0, 2))
    assert batch.low_resolution_noise is None
    assert batch.condition.image is batch.image


def test_a_noised_condition_is_a_function_of_the_step_and_the_position_alone() -> None:
    low = LowResolution(4, max_noise=0.5)
    datamodule = ImageDataModule(FewImages(), batch_size=12, seed=3, low_resolution=low)
    whole = first_batch(low_resolution=low)
    assert whole.low_resolution_noise is not None
    assert whole.image is not None
    assert 0.1 < float(whole.low_resolution_noise.mean()) < 0.4
    assert len(set(whole.low_resolution_noise.flatten().tolist())) == 12
    part = Draws(3, 0, range(4, 8), 12)
    x_0 = ((whole.x_0[4:8] + 1) * 127.5).round().to(torch.uint8)
    batch = type(whole)(x_0, whole.label[4:8], part)
    again = datamodule.on_after_batch_transfer(batch, 0)
    assert again.low_resolution_noise is not None
    assert again.image is not None
    torch.testing.assert_close(again.low_resolution_noise, whole.low_resolution_noise[4:8])
    torch.testing.assert_close(again.image, whole.image[4:8])
