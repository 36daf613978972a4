import numpy as np
import pytest
import torch

from diffusion_lab.samplers import DynamicClipping, NoClipping, StaticClipping


def test_static_clipping_clips_every_pixel_to_the_range_of_images() -> None:
    x_0 = torch.tensor([-3.0, -1.0, -0.2, 0.7, 1.0, 1.5]).view(1, 1, 2, 3)
    assert StaticClipping()(x_0).flatten().tolist() == torch.tensor([-1.0, -1.0, -0.2, 0.7, 1.0, 1.0]).tolist()


def test_no_clipping_leaves_estimates_unchanged() -> None:
    x_0 = 3 * torch.randn(5, 3, 8, 6)
    assert torch.equal(NoClipping()(x_0), x_0)


@pytest.mark.parametrize("percentile", [0.5, 0.8, 0.9, 0.995, 1.0])
def test_dynamic_clipping_is_that_of_saharia_et_al(percentile: float) -> None:
    x_0 = 2 * torch.randn(5, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0[1] *= 20
    found = DynamicClipping(percentile)(x_0)
    for image, clipped in zip(x_0.numpy(), found, strict=True):
        s = max(float(np.percentile(np.abs(image), 100 * percentile)), 1.0)
        expected = np.clip(image, -s, s) / s
        torch.testing.assert_close(clipped, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("percentile", [0.5, 0.995, 1.0])
def test_dynamic_clipping_leaves_images_within_the_range_unchanged(percentile: float) -> None:
    x_0 = torch.rand(5, 3, 8, 6) * 2 - 1
    assert torch.equal(DynamicClipping(percentile)(x_0), x_0)


def test_dynamic_clipping_is_independent_for_each_image() -> None:
    x_0 = torch.randn(5, 3, 8, 6)
    together = DynamicClipping()(torch.cat([50 * x_0[:1], x_0[1:]]))
    assert torch.equal(together[1:], DynamicClipping()(x_0[1:]))
    torch.testing.assert_close(together[:1], DynamicClipping()(50 * x_0[:1]))


def test_dynamic_clipping_keeps_the_ratios_of_pixels_that_static_clipping_saturates() -> None:
    x_0 = torch.linspace(-3, 3, 48).view(1, 3, 4, 4)
    torch.testing.assert_close(DynamicClipping(1.0)(x_0), x_0 / 3)


def test_half_of_the_pixels_saturate_at_percentile_one_half() -> None:
    x_0 = torch.linspace(1, 5, 49, dtype=torch.float64).view(1, 1, 7, 7)
    assert int((DynamicClipping(0.5)(x_0) == 1).sum()) == 25


def test_an_image_of_a_single_pixel_is_clipped() -> None:
    assert DynamicClipping()(torch.full((2, 1, 1, 1), 4.0)).flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("percentile", [0.0, -0.5, 1.5, 99.5])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match=rf"percentile must be in \(0, 1\], got {percentile}"):
        DynamicClipping(percentile)
