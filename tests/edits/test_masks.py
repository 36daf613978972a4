"""Masks choose the stated pixels of each source."""

import pytest
import torch

from diffusion_lab.edits import (
    Color,
    Half,
    Mask,
    MaskFile,
    Outside,
    RandomPixels,
    RandomRectangle,
    Rectangle,
    Sources,
    TransparentPixels,
)
from diffusion_lab.edits.masks import require_partial
from diffusion_lab.errors import UserError

SOURCES = Sources(torch.zeros(3, 3, 8, 12), [5, 2, 5])


@pytest.mark.parametrize(
    ("mask", "rows", "columns"),
    [
        (Rectangle([1, 2, 3, 4]), range(1, 4), range(2, 6)),
        (Rectangle([0.25, 0.5, 0.5, 0.25]), range(2, 6), range(6, 9)),
        (Half("left"), range(8), range(6)),
        (Half("right"), range(8), range(6, 12)),
        (Half("top"), range(4), range(12)),
        (Half("bottom"), range(4, 8), range(12)),
        (Half("middle"), range(8), range(3, 9)),
    ],
)
def test_a_rectangle_is_filled(mask: Mask, rows: range, columns: range) -> None:
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[rows.start : rows.stop, columns.start : columns.stop] = True
    assert torch.equal(mask.hole(SOURCES), expected.expand(3, 1, 8, 12))


def test_outpainting_keeps_the_center() -> None:
    known = ~Outside(keep=0.5).hole(SOURCES)[0, 0]
    assert known.nonzero().amin(0).tolist() == [2, 3]
    assert known.nonzero().amax(0).tolist() == [5, 8]
    assert int(known.sum()) == 4 * 6


@pytest.mark.parametrize("mask", [RandomRectangle(0.3, 0.7), RandomPixels(0.25)])
def test_a_random_hole_depends_on_the_number_of_the_source_only(mask: Mask) -> None:
    hole = mask.hole(SOURCES)
    assert torch.equal(hole[0], hole[2])
    assert not torch.equal(hole[0], hole[1])
    alone = Sources(torch.ones(1, 3, 8, 12), [2])
    assert torch.equal(mask.hole(alone), hole[1:2])


def test_random_pixels_fill_the_stated_fraction() -> None:
    assert RandomPixels(0.25).hole(SOURCES).sum(dim=(1, 2, 3)).tolist() == [24, 24, 24]


def test_sides_of_random_rectangles_are_within_their_bounds() -> None:
    holes = RandomRectangle(0.25, 0.5).hole(Sources(torch.zeros(200, 1, 16, 16), range(200)))[:, 0]
    for dim in (1, 2):
        sides = holes.any(dim=3 - dim).sum(dim=1)
        assert (int(sides.min()), int(sides.max())) == (4, 8)
    assert torch.equal(holes.flatten(1).sum(1), holes.any(1).sum(1) * holes.any(2).sum(1))  # rectangles


def test_pixels_of_a_color_are_filled_with_a_tolerance_in_gray_levels() -> None:
    levels = torch.tensor([[100, 116, 117, 255]], dtype=torch.float32).expand(3, 1, 4)
    sources = Sources((levels / 127.5 - 1)[None], [0])
    assert Color(100, tolerance=16).hole(sources).flatten().tolist() == [True, True, False, False]
    assert Color([100, 100, 255], tolerance=16).hole(sources).sum() == 0


def test_masks_of_files_and_transparent_pixels_are_filled_from_half_white() -> None:
    levels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    sources = Sources(torch.zeros(1, 1, 1, 4), [0], levels)
    for mask in (MaskFile("unused.png"), TransparentPixels()):
        assert mask.hole(sources).flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize(("value", "found"), [(False, "no pixel"), (True, "all pixels")])
def test_a_mask_must_fill_a_part_of_each_image(value: bool, found: str) -> None:
    hole = torch.zeros(3, 1, 8, 12, dtype=torch.bool)
    hole[..., 0] = True
    require_partial(hole, SOURCES)
    hole[1] = value
    with pytest.raises(UserError, match=f"`mask` must fill a part of each image, got a mask that fills {found}.*2"):
        require_partial(hole, SOURCES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rectangle([1, 2, 3]), "box must be"),
        (lambda: Rectangle([0, 0, 0, 4]), "box must be"),
        (lambda: Rectangle([0.1, 0.2, 0.3, 1.4]), "box must be"),
        (lambda: Rectangle([1, 0.2, 0.3, 0.4]), "box must be"),
        (lambda: RandomRectangle(0.5, 0.25), "min_side"),
        (lambda: RandomPixels(1.0), "fraction must be"),
        (lambda: Half("center"), "side must be left, right, top, bottom or middle"),  # type: ignore[arg-type]
        (lambda: Outside(1.0), "keep must be"),
        (lambda: Color(256), "color must be"),
        (lambda: Color([1, 2]), "color must be"),
        (lambda: Color(3, tolerance=-1), "tolerance must be"),
    ],
)
def test_other_settings_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_a_rectangle_outside_of_the_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"mask.box must be a rectangle inside the images \(8 x 12 pixels\)"):
        Rectangle([4, 0, 5, 4]).hole(SOURCES)
