"""Augmentation that the network is told of: what happens to images, what is said of it, and how often."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_lab.data.augmentation import SYM6, Distortions, EDMAugmentation, warp
from diffusion_lab.randomness import Draws

FIELDS = ("flip_x", "flip_y", "zoom", "angle", "stretch", "direction", "right", "down")


def distort(x: Tensor, **strengths: float) -> Tensor:
    """The images, all changed alike; what is not given is 0."""
    zeros = torch.zeros(len(x), dtype=torch.float64)
    return Distortions(*(zeros + strengths.get(name, 0.0) for name in FIELDS))(x)


def picture(x: Tensor, y: Tensor) -> Tensor:
    """A smooth picture without any symmetry, in pixels from its middle: three channels."""
    waves = (torch.sin(0.21 * x + 0.1) * torch.cos(0.25 * y), torch.cos(0.2 * x - 0.1 * y), 0.002 * x * y + 0.01 * x)
    return torch.stack(waves)


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return x, y


def drawn(size: int, probability: float) -> Distortions:
    return Distortions.drawn(Draws(0, 0, range(size), size), probability)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_images_that_only_may_be_mirrored_keep_every_bit() -> None:
    x_0 = noise(60, 3, 8, 6)
    augmented, label = EDMAugmentation(probability=0.0)(x_0, Draws(0, 0, range(60), 60))
    mirrored = label[:, 0] == 1
    assert 15 < int(mirrored.sum()) < 45
    assert torch.equal(augmented[mirrored], x_0[mirrored].flip(-1))
    assert torch.equal(augmented[~mirrored], x_0[~mirrored])
    assert not label[:, 1:].any()


def test_images_left_alone_keep_every_bit_beside_others_that_are_moved() -> None:
    x_0 = noise(60, 3, 8, 6)
    augmented, label = EDMAugmentation(probability=0.12)(x_0, Draws(0, 0, range(60), 60))
    same = torch.tensor([torch.equal(one, other) for one, other in zip(x_0, augmented, strict=True)])
    assert 0 < int(same.sum()) < 60
    assert torch.equal(same, ~label.any(dim=1))


def test_flips_reverse_the_order_of_pixels() -> None:
    x_0 = noise(2, 3, 8, 6)
    assert torch.equal(distort(x_0, flip_x=1), x_0.flip(-1))
    assert torch.equal(distort(x_0, flip_y=1), x_0.flip(-2))
    assert torch.equal(distort(x_0, flip_x=1, flip_y=1), x_0.flip(-1, -2))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_the_pixels(quarters: int) -> None:
    image = picture(*places(24, 24))[None]
    turned = distort(image, angle=quarters * math.pi / 2)
    error = (turned - torch.rot90(image, quarters, (-2, -1)))[..., 4:-4, 4:-4].abs()
    assert float(error.max()) < 4e-3  # 0.08 where pixels are taken to stand at the middle of the filter


def test_shifts_by_whole_pixels_move_pixels() -> None:
    x_0 = noise(2, 3, 8, 16)
    right, up = distort(x_0, right=1.5), distort(x_0, down=-1.0)  # eighths of 16 and of 8 pixels
    torch.testing.assert_close(right[..., 3:], x_0[..., :-3], rtol=0, atol=1e-5)
    torch.testing.assert_close(up[..., :-1, :], x_0[..., 1:, :], rtol=0, atol=1e-5)


def test_an_image_goes_on_as_its_mirror_image_without_end() -> None:
    x_0 = noise(2, 3, 8, 6)
    shifted = distort(x_0, right=8 * 3 / 6, down=8 * 14 / 8)  # 3 pixels, and twice the 7 from edge to edge
    torch.testing.assert_close(shifted, torch.cat([x_0[..., 1:4].flip(-1), x_0[..., :3]], dim=-1), rtol=0, atol=1e-5)


def turned(angle: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Where a place comes from if the picture is turned counter-clockwise, y pointing down."""
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda x, y: (cos * x - sin * y, sin * x + cos * y)


@pytest.mark.parametrize(
    ("strengths", "origin"),
    [
        ({"zoom": 5.0}, lambda x, y: (x / 2, y / 2)),
        ({"stretch": 5.0}, lambda x, y: (x / 2, 2 * y)),
        ({"stretch": 5.0, "direction": math.pi / 2}, lambda x, y: (2 * x, y / 2)),
        ({"stretch": 2.5, "direction": math.pi / 4}, lambda x, y: (_between(x, y), _between(y, x))),
        ({"angle": 0.6}, turned(0.6)),
        # zoomed first, then turned, then stretched, then shifted: undone in the other order
        (
            {"zoom": 2.5, "angle": 0.6, "stretch": -2.5, "right": 0.5, "down": 0.25},
            lambda x, y: tuple(z / 2**0.5 for z in turned(0.6)((x - 2) * 2**0.5, (y - 1) / 2**0.5)),
        ),
    ],
    ids=["zoom", "stretch to the side", "stretch down", "stretch askew", "turn", "all in their order"],
)
def test_the_picture_is_seen_from_where_its_pixels_come_from(
    strengths: dict[str, float], origin: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    x, y = places(32, 32)
    distorted, expected = distort(picture(x, y)[None], **strengths)[0], picture(*origin(x, y))
    middle = (slice(None), slice(12, 20), slice(12, 20))  # of which all is inside the picture
    torch.testing.assert_close(distorted[middle], expected[middle], rtol=0, atol=5e-3)


def _between(along: Tensor, across: Tensor) -> Tensor:
    """One coordinate after (1, 1) is halved by 2^0.5 and (1, -1) as much enlarged."""
    return ((along + across) / 2**0.5 + (along - across) * 2**0.5) / 2


def test_the_filter_is_orthonormal_to_its_even_shifts_and_blind_to_polynomials_of_degree_five() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2), abs=1e-11)
    for shift in range(0, 12, 2):
        assert float(taps[shift:] @ taps[: 12 - shift]) == pytest.approx(float(shift == 0), abs=1e-11)
    wavelet = taps * (-1.0) ** torch.arange(12)
    moments = [float(wavelet @ (torch.arange(12, dtype=torch.float64) / 12) ** power) for power in range(7)]
    assert moments[:6] == pytest.approx([0] * 6, abs=1e-11)
    assert abs(moments[6]) > 1e-5


def test_twice_the_pixels_and_back_is_the_image() -> None:
    x_0 = noise(2, 3, 8, 6)
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(2, 2, 3)
    torch.testing.assert_close(warp(x_0, still), x_0, rtol=0, atol=2e-6)


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_each_transformation_happens_with_its_probability(probability: float) -> None:
    some = drawn(20_000, probability)
    shares = {name: float((getattr(some, name) != 0).double().mean()) for name in FIELDS}
    assert shares.pop("flip_x") == pytest.approx(0.5, abs=0.015)
    assert shares.pop("flip_y") == pytest.approx(probability / 2, abs=0.015)
    assert shares.pop("direction") == pytest.approx(probability / 2, abs=0.015)  # the others along the sides
    assert shares == pytest.approx(dict.fromkeys(shares, probability), abs=0.01)  # 4.4 standard errors
    assert bool((some.stretch != 0)[some.direction != 0].all())
    assert torch.equal(some.right != 0, some.down != 0)


def test_which_transformations_happen_is_drawn_for_each_alone() -> None:
    some = drawn(20_000, 0.5)
    happen = torch.stack([some.flip_x, some.flip_y, some.zoom, some.angle, some.stretch, some.right]) != 0
    correlations = torch.corrcoef(happen.double()) - torch.eye(6)
    assert float(correlations.abs().max()) < 0.03  # 4.2 standard errors


def test_strengths_are_standard_normal_and_angles_uniform_and_none_follows_another() -> None:
    some = drawn(20_000, 1.0)
    normal = torch.stack([some.zoom, some.stretch, some.right, some.down])
    angles = torch.stack([some.angle, some.direction]) / math.pi
    assert normal.mean(dim=1).tolist() == pytest.approx([0] * 4, abs=0.03)
    assert normal.std(dim=1).tolist() == pytest.approx([1] * 4, abs=0.02)
    assert normal.abs().max() > 3
    for row in angles:
        turned = row[row != 0]
        counts = torch.histc(turned, 10, -1, 1) / len(turned)
        assert float((counts - 0.1).abs().max()) < 0.015  # 5 standard deviations
    flips = torch.stack([some.flip_x, some.flip_y])
    correlations = torch.corrcoef(torch.cat([normal, angles, flips])) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.03


def test_the_label_says_what_was_done() -> None:
    numbers = (1.0, 0.0, -0.5, math.pi / 2, 2.0, math.pi / 6, 0.25, -3.0)
    label = Distortions(*(torch.tensor([number, 0.0], dtype=torch.float64) for number in numbers)).label
    assert label[0].tolist() == pytest.approx([1, 0, -0.5, -1, 1, 2 * math.cos(math.pi / 6), 1, 0.25, -3])
    assert label[1].tolist() == [0] * 9


def test_the_label_of_an_image_is_the_one_of_its_distortions_in_float32() -> None:
    _, label = EDMAugmentation(0.5)(noise(12, 3, 8, 6), Draws(0, 0, range(12), 12))
    assert torch.equal(label, drawn(12, 0.5).label.float())


def test_an_image_is_the_same_however_the_batch_is_cut() -> None:
    x_0, augmentation = noise(37, 3, 32, 32), EDMAugmentation(0.3)
    images, label = augmentation(x_0, Draws(5, 7, range(37), 37))
    for cuts in ([0, 1, 9, 26, 37], [0, 20, 37]):
        for start, end in itertools.pairwise(cuts):
            part, part_label = augmentation(x_0[start:end], Draws(5, 7, range(start, end), 37))
            assert torch.equal(part, images[start:end])
            assert torch.equal(part_label, label[start:end])


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_probabilities_out_of_range_are_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"probability must be in \[0, 1\], got {probability}"):
        EDMAugmentation(probability)
