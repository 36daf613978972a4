"""Duplicates in synthetic sets with known pairs."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.data.duplicates import NearDuplicates, Pair, downsample, same_bytes, same_bytes_between

SEARCH = NearDuplicates()


def smooth(count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 24, 20)) -> Tensor:
    """Different smooth images: float [count, *shape] in 40..180, so that noise is not clipped."""
    coarse = torch.rand(count, shape[0], 6, 5, generator=torch.Generator().manual_seed(seed))
    return 40 + 140 * F.interpolate(coarse, shape[1:], mode="bilinear")


def noisy(images: Tensor, seed: int = 100, size: float = 5.0) -> Tensor:
    return images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def as_bytes(*images: Tensor) -> Tensor:
    return torch.cat(images).round().clamp(0, 255).to(torch.uint8)


def numbers(pairs: list[Pair]) -> list[tuple[int, int, str]]:
    return sorted((pair.first, pair.second, pair.kind) for pair in pairs)


def reference(images: Tensor, others: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of all images with all others by NumPy, without and with a horizontal flip: [N, M] each."""
    size, rows = len(images), [side.flatten(1).numpy() for side in (images, images.flip(-1), others)]
    correlation = np.asarray(np.corrcoef(np.concatenate(rows).astype(np.float64)))[:, 2 * size :]
    return correlation[:size], correlation[size : 2 * size]


def test_noisy_brighter_and_flipped_copies_are_found_with_their_kind() -> None:
    base = smooth(300)
    copies = noisy(base[17:18]), noisy(base[42:43] * 0.8 + 60), noisy(base[90:91].flip(-1))
    found = SEARCH.within(as_bytes(base, *copies))
    assert numbers(found) == [(17, 300, "near"), (42, 301, "near"), (90, 302, "mirrored")]
    assert [pair.ratio for pair in found] == sorted(pair.ratio for pair in found)
    assert min(pair.correlation for pair in found) > 0.97


def test_correlation_and_ratio_agree_with_an_exhaustive_comparison() -> None:
    base = smooth(55)
    images = as_bytes(base, noisy(base[30:31]), noisy(base[7:8].flip(-1), size=9.0))
    correlation = np.maximum(*reference(images, images))
    np.fill_diagonal(correlation, -1)
    difference = np.sqrt(2 - 2 * correlation)
    np.fill_diagonal(difference, np.inf)
    ratio = difference / np.sort(difference, axis=1)[:, 9:10]
    found = {(pair.first, pair.second): pair for pair in SEARCH.within(images)}
    assert set(found) == {(30, 55), (7, 56)}
    for (first, second), pair in found.items():
        assert pair.correlation == pytest.approx(correlation[first, second], abs=1e-5)
        assert pair.ratio == pytest.approx(min(ratio[first, second], ratio[second, first]), rel=1e-3)


def test_pairs_above_max_ratio_are_not_found() -> None:
    base = smooth(80)
    images = as_bytes(base, noisy(base[30:31], size=9.0))
    (pair,) = SEARCH.within(images)
    assert NearDuplicates(max_ratio=pair.ratio - 0.01).within(images) == []
    assert NearDuplicates(max_ratio=pair.ratio + 0.01).within(images) == [pair]


def test_similar_images_that_all_correlate_are_not_duplicates() -> None:
    shared = smooth(1)
    base = shared + 0.2 * (smooth(200, seed=1) - 110)
    images = as_bytes(base, noisy(base[5:6], size=2.0))
    upright, _ = reference(images, images)
    assert upright.min() > 0.8
    assert np.mean(upright) > 0.93
    assert numbers(SEARCH.within(images)) == [(5, 200, "near")]


def test_sparse_bright_pixels_on_black_are_not_duplicates() -> None:
    draw = np.random.default_rng(0)
    images = torch.zeros(300, 1, 784, dtype=torch.uint8)
    for image in images:
        image[0, draw.choice(784, size=3, replace=False)] = 255
    images[299] = images[11]
    images[299, 0, images[11, 0].argmax()] = 200
    assert numbers(SEARCH.within(images.reshape(300, 1, 28, 28))) == [(11, 299, "near")]


def test_constant_images_are_not_near_duplicates() -> None:
    gray = torch.tensor([0.0, 90.0, 200.0]).reshape(3, 1, 1, 1).expand(3, 3, 24, 20)
    base = smooth(40)
    assert numbers(SEARCH.within(as_bytes(base, gray, noisy(base[8:9])))) == [(8, 43, "near")]
    assert SEARCH.within(as_bytes(*(gray + k for k in range(14)))) == []


def test_all_pairs_of_a_few_near_copies_are_found() -> None:
    base = smooth(50)
    copies = [noisy(base[20:21], seed) for seed in (1, 2, 3)]
    expected = [(*pair, "near") for pair in combinations((20, 50, 51, 52), 2)]
    assert numbers(SEARCH.within(as_bytes(base, *copies))) == expected


def test_copies_are_found_in_sets_of_more_than_one_block() -> None:
    images = torch.randint(0, 256, (5000, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    images[4990] = noisy(images[3])
    images[4300] = noisy(images[4200]).flip(-1)
    assert numbers(SEARCH.within(as_bytes(images))) == [(3, 4990, "near"), (4200, 4300, "mirrored")]


def test_pairs_between_two_sets_have_the_image_of_the_first_set_first() -> None:
    base, others = smooth(150), smooth(70, seed=1)
    others[60], others[2] = noisy(base[140]), noisy(base[9].flip(-1))
    found = SEARCH.between(as_bytes(base), as_bytes(others))
    assert numbers(found) == [(9, 2, "mirrored"), (140, 60, "near")]
    assert [pair.ratio for pair in found] == sorted(pair.ratio for pair in found)


def test_the_ratio_between_two_sets_is_relative_to_neighbors_of_the_second_image() -> None:
    base, others = smooth(60), smooth(30, seed=1)
    others[4] = noisy(base[50])
    upright, mirrored = reference(as_bytes(others), as_bytes(base))
    difference = np.sqrt(2 - 2 * np.maximum(upright, mirrored))
    (pair,) = SEARCH.between(as_bytes(base), as_bytes(others))
    assert pair.ratio == pytest.approx(difference[4, 50] / np.sort(difference[4])[9], rel=1e-3)


def test_near_duplicates_require_a_further_image() -> None:
    base = smooth(2)
    copy = noisy(base[:1])
    assert SEARCH.within(as_bytes(base[:1], copy)) == []
    assert numbers(SEARCH.within(as_bytes(base, copy))) == [(0, 2, "near")]
    assert SEARCH.between(as_bytes(base[:1]), as_bytes(copy)) == []
    assert numbers(SEARCH.between(as_bytes(base), as_bytes(copy))) == [(0, 0, "near")]
    assert SEARCH.within(as_bytes(base[:0])) == []
    assert SEARCH.between(as_bytes(base), as_bytes(base[:0])) == []


def test_large_images_are_averaged_down() -> None:
    pixels = torch.randint(0, 256, (5, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = pixels.double().reshape(5, 3, 32, 3, 32, 2).mean((3, 5))
    assert (downsample(pixels).double() - means).abs().max() <= 0.5
    assert downsample(pixels[..., :20]).shape == (5, 3, 32, 20)
    assert torch.equal(downsample(pixels[..., :32, :20]), pixels[..., :32, :20])


def test_same_bytes_are_grouped_by_equal_digests() -> None:
    digests = np.array([7, 3, 9, 3, 7, 1, 3], dtype=np.uint64)
    assert same_bytes(digests) == [(0, 4), (1, 3, 6)]
    assert same_bytes(np.arange(4, dtype=np.uint64)) == []


def test_same_bytes_between_returns_the_first_of_equal_images() -> None:
    digests, others = np.array([7, 3, 3, 5], dtype=np.uint64), np.array([9, 3, 1, 7, 3], dtype=np.uint64)
    assert same_bytes_between(digests, others) == [Pair(1, 1), Pair(0, 3), Pair(1, 4)]


def test_the_compared_images_are_a_random_function_of_the_seed() -> None:
    chosen = NearDuplicates(max_compared=30, seed=3).choose(500)
    assert len(set(chosen.tolist())) == 30
    assert chosen.min() >= 0
    assert 400 < chosen.max() < 500
    assert np.array_equal(chosen, NearDuplicates(max_compared=30, seed=3).choose(500))
    assert not np.array_equal(chosen, NearDuplicates(max_compared=30, seed=4).choose(500))
    assert sorted(SEARCH.choose(6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"max_ratio": 0.0}, r"max_ratio must be in \(0, 1\), got 0\.0\."),
        ({"max_ratio": 1.0}, r"max_ratio must be in \(0, 1\), got 1\.0\."),
        ({"neighbor": 0}, r"neighbor must be in 1\.\.32, got 0\."),
        ({"neighbor": 33}, r"neighbor must be in 1\.\.32, got 33\."),
        ({"max_compared": -1}, r"max_compared must be at least 0, got -1\."),
        ({"seed": -1}, r"seed must be in 0\.\.2\^63 - 1, got -1\."),
    ],
)
def test_settings_out_of_range_are_refused(argument: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearDuplicates(**argument)  # type: ignore[arg-type]
