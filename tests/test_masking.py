"""Holes of inpainting networks: their distribution, their convention, and what a network learns from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.masking import Halves, Masking, RandomRectangles, Strokes, encode_masked, masked_condition
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import Draws
from support.condition_networks import error_at, trained
from support.small_runs import FewImages, first_batch, fit, small_module, weights

LIKE = torch.zeros(1, 3, 20, 24)
KINDS = [RandomRectangles(), Strokes(), Halves()]


def masks(masking: Masking, count: int, like: Tensor = LIKE) -> Tensor:
    """Return `count` masks, bool [count, H, W], true for known pixels."""
    return masking.mask(Draws(5, 0, range(count), count).masks(masking.num_uniform), like)[:, 0]


def test_known_pixels_are_kept_and_the_hole_is_gray_whatever_it_hides() -> None:
    images, mask = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5) < 0.5
    condition = masked_condition(torch.tensor([3, 1]), images.masked_fill(~mask, torch.nan), mask)
    assert condition.image is not None
    assert condition.image.shape == (2, 4, 4, 5)
    assert torch.equal(condition.image[:, :3], torch.where(mask, images, torch.zeros(())))
    assert torch.equal(condition.image[:, 3:], mask.float())
    assert condition.label is not None
    assert condition.label.tolist() == [3, 1]
    whole_numbers = masked_condition(None, images, mask.long()).image
    assert whole_numbers is not None
    assert torch.equal(whole_numbers[:, 3:], mask.float())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 3, 4, 5), r"`mask` must be \[2, 1, 4, 5\] for images \[2, 3, 4, 5\], got \[2, 3, 4, 5\]"),
        (torch.full((2, 1, 4, 5), 255), "`mask` must be 1 for known pixels and 0 in the hole, got other values"),
    ],
)
def test_a_mask_of_another_shape_or_with_other_values_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_condition(None, torch.zeros(2, 3, 4, 5), mask)


def test_a_pixel_of_the_mask_of_latents_is_known_if_all_pixels_of_its_block_are_known() -> None:
    images, mask = torch.randn(2, 3, 12, 8), (torch.rand(2, 1, 12, 8) < 0.9).float()
    encoded = encode_masked(torch.cat([images, mask], dim=1), lambda images: 2 * images[:, :2, ::3, ::4])
    assert torch.equal(encoded[:, :2], 2 * images[:, :2, ::3, ::4])
    blocks = [
        [float(mask[k, 0, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4].min()) for j in range(2)]
        for k in (0, 1)
        for i in range(4)
    ]
    assert encoded[:, 2].flatten().tolist() == [known for row in blocks for known in row]
    assert 0 < encoded[:, 2].mean() < mask[:, 0, ::3, ::4].mean()  # the first pixels of blocks miss holes


def test_a_hole_of_one_rectangle_has_sides_and_positions_that_are_uniform() -> None:
    holes = ~masks(RandomRectangles(max_rectangles=1, min_side=0.25, max_side=0.5), 4000)
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :])
    for side, used in ((20, rows), (24, columns)):
        length = used.sum(1)
        counts = length.bincount(minlength=side)[side // 4 : side // 2 + 1]
        assert counts.sum() == 4000
        assert counts.min() > 0.7 * 4000 / len(counts)  # 5 standard deviations below the mean
        first = used.long().argmax(1)
        assert torch.equal(used.sum(1), (used.flip(1).long().argmax(1) + first - side).abs())  # without gaps
        assert (first / (side - length)).mean().item() == pytest.approx(0.5, abs=0.02)
    # The sides are independent, with means of 3/8 of those of the image.
    assert holes.float().mean().item() == pytest.approx(9 / 64, abs=0.003)


def test_several_rectangles_cover_what_a_reference_with_loops_covers() -> None:
    masking = RandomRectangles(max_rectangles=3)
    uniform = Draws(5, 0, range(60), 60).masks(masking.num_uniform)
    counts = []
    for known, numbers in zip(masks(masking, 60), uniform.tolist(), strict=True):
        count = int(3 * numbers[0]) + 1
        expected = torch.ones(20, 24, dtype=torch.bool)
        for k in range(count):
            w, h = (round(0.2 * s) + int(numbers[1 + 3 * j + k] * (round(0.6 * s) - round(0.2 * s) + 1))
                    for j, s in ((0, 24), (1, 20)))  # fmt: skip
            x, y = int(numbers[7 + k] * (24 - w + 1)), int(numbers[10 + k] * (20 - h + 1))
            expected[y : y + h, x : x + w] = False
        assert torch.equal(known, expected)
        counts.append(count)
    assert set(counts) == {1, 2, 3}


def test_strokes_cover_the_pixels_near_their_lines() -> None:
    masking = Strokes(max_strokes=2, num_segments=3)
    uniform = Draws(5, 0, range(12), 12).masks(masking.num_uniform).numpy()
    centers = np.stack(np.meshgrid(np.arange(24) + 0.5, np.arange(20) + 0.5), axis=-1)  # [20, 24, 2], (x, y)
    for known, numbers in zip(masks(masking, 12).numpy(), uniform, strict=True):
        gap = np.full((20, 24), np.inf)  # distance to the edge of the nearest stroke
        for stroke in range(int(2 * numbers[0]) + 1):
            values = numbers[1 + 9 * stroke : 10 + 9 * stroke]
            radius, point = (0.1 + 0.15 * values[0]) * 20 / 2, values[1:3]
            for step in values[3:].reshape(3, 2):
                end = (point + 0.3 * (2 * step - 1)).clip(0, 1)
                line = point + np.linspace(0, 1, 401)[:, None] * (end - point)  # samples of the segment
                distance = np.linalg.norm(centers[:, :, None] - line * [24, 20], axis=-1).min(-1)
                gap, point = np.minimum(gap, distance - radius), end
        is_clear = np.abs(gap) > 0.02
        assert is_clear.mean() > 0.95
        assert np.array_equal(known[is_clear], gap[is_clear] > 0)


def test_each_half_is_the_hole_of_a_quarter_of_the_images_and_an_odd_middle_is_known() -> None:
    known = masks(Halves(), 2000, torch.zeros(1, 1, 5, 6))
    left = torch.ones(5, 6, dtype=torch.bool)
    left[:, :3] = False
    upper = torch.ones(5, 6, dtype=torch.bool)
    upper[:2] = False
    counts = [int((known == half).all((1, 2)).sum()) for half in (left, left.flip(1), upper, upper.flip(0))]
    assert sum(counts) == 2000
    assert min(counts) > 400


@pytest.mark.parametrize(
    ("masking", "share", "pixels"), [(KINDS[0], 0.27, 163), (KINDS[1], 0.244, 160), (KINDS[2], 0.5, 240)], ids=str
)
def test_the_share_of_the_hole_and_the_hole_of_a_seed_stay_the_same(
    masking: Masking, share: float, pixels: int
) -> None:
    holes = ~masks(masking, 2000)
    assert holes.float().mean().item() == pytest.approx(share, abs=0.01)
    assert int(holes[0].sum()) == pixels
    assert (holes.flatten(1).any(1) & ~holes.flatten(1).all(1)).all()  # every image has a hole and known pixels


@pytest.mark.parametrize("masking", KINDS, ids=str)
def test_the_holes_of_a_step_do_not_depend_on_the_number_of_ranks(masking: Masking) -> None:
    whole = first_batch(masking=masking)
    datamodule = ImageDataModule(FewImages(), batch_size=12, seed=3, masking=masking)
    parts = []
    for positions in (range(6), range(6, 12)):  # of rank 0 and of rank 1
        index = torch.tensor(positions)
        pixels = datamodule.train_images.gather(index)
        batch = type(whole)(pixels, whole.label[index], Draws(3, 0, positions, 12))
        parts.append(datamodule.on_after_batch_transfer(batch, 0).image)
    assert whole.image is not None
    assert torch.equal(torch.cat(parts), whole.image)  # type: ignore[arg-type]
    assert whole.image.shape == (12, 2, 8, 8)
    known = whole.image[:, 1:] == 1
    assert torch.equal(whole.image[:, :1][known], whole.x_0[known])
    other = masking.mask(Draws(3, 1, range(12), 12).masks(masking.num_uniform), whole.x_0)
    assert not torch.equal(other, known)  # another step has other holes


def test_a_resumed_run_has_the_holes_and_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, resumed = (small_module(condition_channels=2) for _ in range(3))
    fit(whole, 4, masking=Strokes())
    fit(first, 2, masking=Strokes()).save_checkpoint(tmp_path / "last.ckpt")
    fit(resumed, 4, masking=Strokes(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weights(resumed.network), weights(whole.network))
    assert not torch.equal(weights(first.network), weights(whole.network))


def test_a_network_with_a_masked_condition_predicts_the_known_pixels() -> None:
    plain, masked = trained(FewImages(), 200), trained(FewImages(), 200, 2, masking=Halves())
    x_0 = from_uint8(FewImages().load().gather(torch.arange(50)))
    known = Halves().mask(Draws(9, 0, range(50), 50).masks(1), x_0)
    error = error_at(masked, x_0, masked_condition(None, x_0, known), t=0.9)
    variance = x_0.var().item()
    assert error_at(plain, x_0, Condition(), t=0.9)[known].mean().item() == pytest.approx(variance, rel=0.15)
    assert error[known].mean().item() < 0.02 * variance
    assert error[~known].mean().item() == pytest.approx(variance, rel=0.15)  # the pixels are independent


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RandomRectangles, {"max_rectangles": 0}, "max_rectangles must be a whole number of at least 1, got 0"),
        (RandomRectangles, {"min_side": 0.7}, r"min_side and max_side must satisfy 0 < .* <= 1, got 0.7 and 0.6"),
        (Strokes, {"num_segments": 1.5}, "num_segments must be a whole number of at least 1, got 1.5"),
        (Strokes, {"max_step": 0}, r"max_step must be in \(0, 1\], got 0"),
        (Strokes, {"max_width": 2}, "min_width and max_width must satisfy"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Masking], settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
