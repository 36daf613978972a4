"""Augmentation with conditioning: the transformations, their labels and their probabilities."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_lab.data.augmentation import SYM6, EDMAugmentation, GeometricTransforms, warp
from diffusion_lab.randomness import Draws

FIELDS = ("flip_x", "flip_y", "scale", "rotation", "anisotropy", "direction", "shift_x", "shift_y")


def transform(x: Tensor, **parameters: float) -> Tensor:
    """Transform all images with the same parameters; those that are not given are 0."""
    zeros = torch.zeros(len(x), dtype=torch.float64)
    return GeometricTransforms(*(zeros + parameters.get(name, 0.0) for name in FIELDS))(x)


def picture(x: Tensor, y: Tensor) -> Tensor:
    """Smooth picture without symmetry, as a function of the position in pixels from its center: [3, H, W]."""
    waves = (torch.sin(0.21 * x + 0.1) * torch.cos(0.25 * y), torch.cos(0.2 * x - 0.1 * y), 0.002 * x * y + 0.01 * x)
    return torch.stack(waves)


def positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return x, y


def sample(size: int, probability: float) -> GeometricTransforms:
    return GeometricTransforms.sample(Draws(0, 0, range(size), size), probability)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_at_probability_0_images_are_only_flipped_to_the_bit() -> None:
    x_0 = noise(60, 3, 8, 6)
    augmented, label = EDMAugmentation(probability=0.0)(x_0, Draws(0, 0, range(60), 60))
    flipped = label[:, 0] == 1
    assert 15 < int(flipped.sum()) < 45
    assert torch.equal(augmented[flipped], x_0[flipped].flip(-1))
    assert torch.equal(augmented[~flipped], x_0[~flipped])
    assert not label[:, 1:].any()


def test_images_that_are_not_transformed_stay_exact_in_a_batch_with_transformed_ones() -> None:
    x_0 = noise(60, 3, 8, 6)
    augmented, label = EDMAugmentation(probability=0.12)(x_0, Draws(0, 0, range(60), 60))
    same = torch.tensor([torch.equal(one, other) for one, other in zip(x_0, augmented, strict=True)])
    assert 0 < int(same.sum()) < 60
    assert torch.equal(same, ~label.any(dim=1))


def test_flips_reverse_the_order_of_pixels() -> None:
    x_0 = noise(2, 3, 8, 6)
    assert torch.equal(transform(x_0, flip_x=1), x_0.flip(-1))
    assert torch.equal(transform(x_0, flip_y=1), x_0.flip(-2))
    assert torch.equal(transform(x_0, flip_x=1, flip_y=1), x_0.flip(-1, -2))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotations_by_90_degrees_permute_pixels(quarters: int) -> None:
    image = picture(*positions(24, 24))[None]
    rotated = transform(image, rotation=quarters * math.pi / 2)
    error = (rotated - torch.rot90(image, quarters, (-2, -1)))[..., 4:-4, 4:-4].abs()
    assert float(error.max()) < 4e-3  # 0.08 with the middle of the filter instead of its center of mass


def test_translations_by_whole_pixels_move_pixels() -> None:
    x_0 = noise(2, 3, 8, 16)
    right, up = transform(x_0, shift_x=1.5), transform(x_0, shift_y=-1.0)  # eighths of 16 and of 8 pixels
    torch.testing.assert_close(right[..., 3:], x_0[..., :-3], rtol=0, atol=1e-5)
    torch.testing.assert_close(up[..., :-1, :], x_0[..., 1:, :], rtol=0, atol=1e-5)


def test_an_image_continues_beyond_its_borders_by_reflection() -> None:
    x_0 = noise(2, 3, 8, 6)
    shifted = transform(x_0, shift_x=8 * 3 / 6, shift_y=8 * 14 / 8)  # 3 pixels; one period of 14 pixels
    torch.testing.assert_close(shifted, torch.cat([x_0[..., 1:4].flip(-1), x_0[..., :3]], dim=-1), rtol=0, atol=1e-5)


def rotate(angle: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the map from positions in a picture that is rotated counterclockwise to positions in the original."""
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda x, y: (cos * x - sin * y, sin * x + cos * y)


@pytest.mark.parametrize(
    ("parameters", "origin"),
    [
        ({"scale": 5.0}, lambda x, y: (x / 2, y / 2)),
        ({"anisotropy": 5.0}, lambda x, y: (x / 2, 2 * y)),
        ({"anisotropy": 5.0, "direction": math.pi / 2}, lambda x, y: (2 * x, y / 2)),
        ({"anisotropy": 2.5, "direction": math.pi / 4}, lambda x, y: (_diagonal(x, y), _diagonal(y, x))),
        ({"rotation": 0.6}, rotate(0.6)),
        # The inverse in reverse order: translation, anisotropic scaling, rotation, isotropic scaling.
        (
            {"scale": 2.5, "rotation": 0.6, "anisotropy": -2.5, "shift_x": 0.5, "shift_y": 0.25},
            lambda x, y: tuple(z / 2**0.5 for z in rotate(0.6)((x - 2) * 2**0.5, (y - 1) / 2**0.5)),
        ),
    ],
    ids=["scaling", "horizontal scaling", "vertical scaling", "diagonal scaling", "rotation", "all in order"],
)
def test_transformed_images_are_the_picture_at_the_inverse_positions(
    parameters: dict[str, float], origin: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    x, y = positions(32, 32)
    transformed, expected = transform(picture(x, y)[None], **parameters)[0], picture(*origin(x, y))
    center = (slice(None), slice(12, 20), slice(12, 20))  # its origin is inside the picture
    torch.testing.assert_close(transformed[center], expected[center], rtol=0, atol=5e-3)


def _diagonal(along: Tensor, across: Tensor) -> Tensor:
    """Coordinate after the direction (1, 1) is shrunk by 2^0.5 and the direction (1, -1) enlarged by it."""
    return ((along + across) / 2**0.5 + (along - across) * 2**0.5) / 2


def test_the_filter_is_orthonormal_to_its_even_shifts_and_has_six_vanishing_moments() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2), abs=1e-11)
    for shift in range(0, 12, 2):
        assert float(taps[shift:] @ taps[: 12 - shift]) == pytest.approx(float(shift == 0), abs=1e-11)
    wavelet = taps * (-1.0) ** torch.arange(12)
    moments = [float(wavelet @ (torch.arange(12, dtype=torch.float64) / 12) ** power) for power in range(7)]
    assert moments[:6] == pytest.approx([0] * 6, abs=1e-11)
    assert abs(moments[6]) > 1e-5


def test_warping_with_the_identity_restores_the_image() -> None:
    x_0 = noise(2, 3, 8, 6)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(2, 2, 3)
    torch.testing.assert_close(warp(x_0, identity), x_0, rtol=0, atol=2e-6)


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_each_transformation_is_enabled_with_its_probability(probability: float) -> None:
    transforms = sample(20_000, probability)
    fractions = {name: float((getattr(transforms, name) != 0).double().mean()) for name in FIELDS}
    assert fractions.pop("flip_x") == pytest.approx(0.5, abs=0.015)
    assert fractions.pop("flip_y") == pytest.approx(probability / 2, abs=0.015)
    assert fractions.pop("direction") == pytest.approx(
        probability / 2, abs=0.015
    )  # the others are scaled along an axis
    assert fractions == pytest.approx(dict.fromkeys(fractions, probability), abs=0.01)  # 4.4 standard errors
    assert bool((transforms.anisotropy != 0)[transforms.direction != 0].all())
    assert torch.equal(transforms.shift_x != 0, transforms.shift_y != 0)


def test_transformations_are_enabled_independently() -> None:
    transforms = sample(20_000, 0.5)
    names = ("flip_x", "flip_y", "scale", "rotation", "anisotropy", "shift_x")
    enabled = torch.stack([getattr(transforms, name) for name in names]) != 0
    correlations = torch.corrcoef(enabled.double()) - torch.eye(6)
    assert float(correlations.abs().max()) < 0.03  # 4.2 standard errors


def test_parameters_are_independent_and_standard_normal_or_for_angles_uniform() -> None:
    transforms = sample(20_000, 1.0)
    normal = torch.stack([transforms.scale, transforms.anisotropy, transforms.shift_x, transforms.shift_y])
    angles = torch.stack([transforms.rotation, transforms.direction]) / math.pi
    assert normal.mean(dim=1).tolist() == pytest.approx([0] * 4, abs=0.03)
    assert normal.std(dim=1).tolist() == pytest.approx([1] * 4, abs=0.02)
    assert normal.abs().max() > 3
    for row in angles:
        nonzero = row[row != 0]
        fractions = torch.histc(nonzero, 10, -1, 1) / len(nonzero)
        assert float((fractions - 0.1).abs().max()) < 0.015  # 5 standard deviations
    flips = torch.stack([transforms.flip_x, transforms.flip_y])
    correlations = torch.corrcoef(torch.cat([normal, angles, flips])) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.03


def test_the_augmentation_label_is_that_of_the_paper() -> None:
    numbers = (1.0, 0.0, -0.5, math.pi / 2, 2.0, math.pi / 6, 0.25, -3.0)
    transforms = GeometricTransforms(*(torch.tensor([number, 0.0], dtype=torch.float64) for number in numbers))
    label = transforms.augmentation_label()
    assert label[0].tolist() == pytest.approx([1, 0, -0.5, -1, 1, 2 * math.cos(math.pi / 6), 1, 0.25, -3])
    assert label[1].tolist() == [0] * 9


def edm_inverse_and_label(w: dict[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """The matrix product and the last seven labels of the code of Karras et al. (2022), which has y downwards."""
    zero, one = torch.zeros_like(w["scale"]), torch.ones_like(w["scale"])

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    def rotate(theta: Tensor) -> Tensor:
        cos, sin = theta.cos(), theta.sin()
        return matrix(cos, -sin, zero, sin, cos, zero, zero, zero, one)

    def stretch(x: Tensor, y: Tensor) -> Tensor:
        return matrix(x, zero, zero, zero, y, zero, zero, zero, one)

    size, factor, r = (2 ** (0.2 * w["scale"])), 2 ** (0.2 * w["anisotropy"]), w["r"]
    inverse = stretch(1 / size, 1 / size) @ rotate(w["rotation"])  # rotate2d_inv(-w)
    inverse = inverse @ rotate(-r) @ stretch(1 / factor, factor) @ rotate(r)
    x, y = w["shift_x"] * width * 0.125, w["shift_y"] * height * 0.125
    inverse = inverse @ matrix(one, zero, -x, zero, one, -y, zero, zero, one)
    label = [w["scale"], w["rotation"].cos() - 1, w["rotation"].sin()]
    label += [w["anisotropy"] * r.cos(), w["anisotropy"] * r.sin(), w["shift_x"], w["shift_y"]]
    return inverse[:, :2], torch.stack(label, dim=1)


def test_the_counterclockwise_label_and_its_transformation_are_those_of_edms_code() -> None:
    ours = sample(50, 0.9)
    w = {name: getattr(ours, name) for name in FIELDS} | {"r": -ours.direction}
    inverse, label = edm_inverse_and_label(w, 8, 6)
    torch.testing.assert_close(ours.inverse(8, 6), inverse)
    torch.testing.assert_close(ours.augmentation_label("counterclockwise")[:, 2:], label)
    sign = torch.tensor([1, 1, 1, 1, 1, 1, -1, 1, 1])
    assert torch.equal(ours.augmentation_label(), sign * ours.augmentation_label("counterclockwise"))
    assert float((ours.augmentation_label()[:, 6] != 0).double().mean()) > 0.2


@pytest.mark.parametrize(("slope", "seventh"), [(1, 1), (-1, -1)], ids=["rising diagonal", "falling diagonal"])
def test_the_label_of_edms_code_points_along_the_diagonal_in_which_an_image_is_stretched(
    slope: int, seventh: int
) -> None:
    x, y = positions(32, 32)  # y downwards
    across = (slope * x + y) / 2**0.5  # distance from a line that rises to the right for slope 1
    center = (..., slice(12, 20), slice(12, 20))
    for direction in (-math.pi / 4, math.pi / 4):
        zeros = torch.zeros(1, dtype=torch.float64)
        w = dict.fromkeys(FIELDS, zeros) | {"anisotropy": zeros + 5, "direction": zeros + direction}
        transforms = GeometricTransforms(**w)
        cos, sin = transforms.augmentation_label("counterclockwise")[0, 5:7].tolist()
        assert (cos, sin) == pytest.approx((5 / 2**0.5, math.copysign(5 / 2**0.5, sin)))
        # Stretched by 2 along the line, the line becomes half as wide; stretched across the line, twice as wide.
        width = 2 if math.copysign(1, sin) == seventh else 8
        transformed = transforms(torch.exp(-((across / 4) ** 2))[None, None])[0, 0]
        torch.testing.assert_close(transformed[center], torch.exp(-((across / width) ** 2))[center], rtol=0, atol=0.02)


def test_only_the_seventh_value_of_the_label_depends_on_the_sense_of_the_angle() -> None:
    x_0, draws = noise(60, 3, 8, 6), Draws(0, 0, range(60), 60)
    images, label = EDMAugmentation(0.5)(x_0, draws)
    others, of_edm = EDMAugmentation(0.5, "counterclockwise")(x_0, draws)
    assert torch.equal(images, others)
    assert torch.equal((label != of_edm).any(dim=0), torch.arange(9) == 6)
    assert torch.equal(label[:, 6], -of_edm[:, 6])


def test_another_sense_of_the_angle_is_refused() -> None:
    with pytest.raises(ValueError, match="anisotropy_direction must be clockwise or counterclockwise, got left"):
        EDMAugmentation(anisotropy_direction="left")  # type: ignore[arg-type]


def test_the_augmentation_label_is_returned_in_float32() -> None:
    _, label = EDMAugmentation(0.5)(noise(12, 3, 8, 6), Draws(0, 0, range(12), 12))
    assert torch.equal(label, sample(12, 0.5).augmentation_label().float())


def test_an_image_does_not_depend_on_the_split_of_the_global_batch() -> None:
    x_0, augmentation = noise(37, 3, 32, 32), EDMAugmentation(0.3)
    images, label = augmentation(x_0, Draws(5, 7, range(37), 37))
    for boundaries in ([0, 1, 9, 26, 37], [0, 20, 37]):
        for start, end in itertools.pairwise(boundaries):
            part, part_label = augmentation(x_0[start:end], Draws(5, 7, range(start, end), 37))
            assert torch.equal(part, images[start:end])
            assert torch.equal(part_label, label[start:end])


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_probabilities_out_of_range_are_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"probability must be in \[0, 1\], got {probability}"):
        EDMAugmentation(probability)
