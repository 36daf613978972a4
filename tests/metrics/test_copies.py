import pytest
import torch
from torch import Tensor

from diffusion_lab.metrics.copies import nearest_distances


def random_images(size: int, seed: int, shape: tuple[int, ...] = (3, 8, 6)) -> Tensor:
    return torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 28, 28), (3, 32, 32)])
def test_a_copy_has_distance_0(shape: tuple[int, ...]) -> None:
    images, samples = random_images(500, 0, shape), random_images(30, 1, shape)
    samples[17] = images[321]
    distances = nearest_distances(samples, images)
    assert float(distances[17]) == 0
    assert float(distances[:17].min()) > 1


def test_a_difference_of_one_level_in_one_pixel_is_1_255th() -> None:
    images = random_images(500, 0)
    samples = images[[300, 20]].clone()
    samples[1, 2, 7, 5] ^= 1
    assert nearest_distances(samples, images).tolist() == pytest.approx([0, 1 / 255], rel=1e-5)


def test_distances_are_those_of_the_nearest_image() -> None:
    images, samples = random_images(40, 0), random_images(300, 1)  # more than one batch
    differences = (samples[:, None].double() - images[None].double()) / 255
    expected = differences.square().sum(dim=(2, 3, 4)).sqrt().amin(1)
    distances = nearest_distances(samples, images)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
