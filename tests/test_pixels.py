import pytest
import torch

from diffusion_lab.pixels import from_uint8, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8).view(2, 1, 16, 8)


def test_all_levels_survive_the_conversion_to_float_and_back() -> None:
    images = from_uint8(LEVELS)
    assert (images.dtype, images.shape) == (torch.float32, LEVELS.shape)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(images), LEVELS)


def test_levels_are_scaled_exactly_as_by_the_formula() -> None:
    assert torch.equal(from_uint8(LEVELS), LEVELS.float() / 127.5 - 1)
    resized = LEVELS.float() + 0.3
    assert torch.equal(from_uint8(resized), resized / 127.5 - 1)


def test_the_argument_is_not_modified() -> None:
    for pixels in (LEVELS.clone(), LEVELS.float()):
        before = pixels.clone()
        from_uint8(pixels)
        assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "images",
    [LEVELS / 127.5 - 1, LEVELS.double() / 127.5 - 1, (LEVELS.float() / 255) * 2 - 1],
    ids=["float32", "float64", "as by torchvision"],
)
def test_levels_are_restored_from_any_rounding_of_the_scaling(images: torch.Tensor) -> None:
    assert torch.equal(to_uint8(images), LEVELS)


def test_values_between_levels_are_rounded_and_values_outside_are_clipped() -> None:
    image = torch.tensor([-7.0, -1.0, -0.004, 0.0, 0.004, 1.0, 7.0]).view(1, 1, 7, 1)
    assert to_uint8(image).flatten().tolist() == [0, 0, 127, 128, 128, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    images = torch.zeros(5, 3, 8, 6)
    images[3, 1, 4, 2] = value
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinity"):
        to_uint8(images)
