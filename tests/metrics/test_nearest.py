import pytest
import torch
from torch import Tensor

from diffusion_lab.features import RawPixels
from diffusion_lab.metrics import nearest as module
from diffusion_lab.metrics.nearest import nearest


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_images(size: int, seed: int, shape: tuple[int, ...] = (3, 8, 6)) -> Tensor:
    return torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def all_distances(rows: Tensor, others: Tensor) -> Tensor:
    return (rows[:, None].double() - others[None].double()).square().sum(2).sqrt()


def test_distances_and_indices_are_those_of_all_differences_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others = normal(70, 24), normal(90, 24, seed=1)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 1000)  # 11 rows at a time
    distance, index = nearest(rows, others)
    expected = all_distances(rows, others).min(dim=1)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance, expected.values, rtol=1e-14, atol=0)


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_the_nearest_of_vectors_is_found_whose_distances_float32_cannot_tell_apart(spread: float) -> None:
    """All pairs are close compared with their norm: the expansion of the squares orders them by its rounding error."""
    offsets = 3 * torch.tensor([1.0, -1.0]).repeat(50)[:, None] * normal(1, 40, seed=2)  # two far groups
    others = (offsets + spread * normal(100, 40)).float()
    rows = (offsets + spread * normal(100, 40, seed=1)).float()
    distance, index = nearest(rows, others)
    expected = all_distances(rows, others).min(dim=1)
    assert torch.equal(index, expected.indices)
    assert torch.equal(distance, expected.values)


def test_a_vector_has_distance_0_to_its_copy_and_is_not_its_own_neighbor_if_it_is_in_the_set() -> None:
    others = 100 + normal(120, 512)
    distance, index = nearest(others, others)
    assert float(distance.max()) == 0
    assert torch.equal(index, torch.arange(120))
    within = all_distances(others, others).fill_diagonal_(torch.inf).min(dim=1)
    distance, index = nearest(others[50:], others, own=torch.arange(50, 120))
    assert torch.equal(index, within.indices[50:])
    torch.testing.assert_close(distance, within.values[50:], rtol=1e-14, atol=0)


def test_the_two_vectors_of_a_set_are_neighbors_of_each_other() -> None:
    distance, index = nearest(torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [3.0]]), own=torch.arange(2))
    assert distance.tolist() == [3, 3]
    assert index.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 28, 28), (3, 32, 32)])
def test_a_copied_image_has_distance_0_in_pixels(shape: tuple[int, ...]) -> None:
    images, samples, features = random_images(500, 0, shape), random_images(30, 1, shape), RawPixels()
    samples[17] = images[321]
    distance, index = nearest(features(samples)["pooled"], features(images)["pooled"])
    assert (float(distance[17]), int(index[17])) == (0, 321)
    assert float(distance[:17].min()) > 1


def test_a_difference_of_one_level_in_one_pixel_is_1_255th() -> None:
    images, features = random_images(500, 0), RawPixels()
    samples = images[[300, 20]].clone()
    samples[1, 2, 7, 5] ^= 1
    distance, _ = nearest(features(samples)["pooled"], features(images)["pooled"])
    assert distance.tolist() == pytest.approx([0, 1 / 255], rel=1e-5)


def test_pixels_of_large_images_are_means_of_areas() -> None:
    images = random_images(3, 0, (1, 64, 64))
    expected = images.float().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)) / 255
    torch.testing.assert_close(RawPixels()(images)["pooled"], expected.flatten(1))
