"""Operators and their transposes, singular value decompositions and pseudo-inverses, and the conventions of others."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as vision

from diffusion_lab.inverse_problems import (
    AreaDownsampling,
    BicubicDownsampling,
    CompressedSensing,
    GaussianBlur,
    Grayscale,
    Inpainting,
    LinearOperator,
    MotionBlur,
    SpectralOperator,
)
from diffusion_lab.inverse_problems.operators import TOLERANCE
from support.every_operator import SHAPE, every_operator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(batch_size: int = 5) -> Tensor:
    return normal(batch_size, *SHAPE)


def measurements(operator: LinearOperator) -> Tensor:
    return normal(5, *operator.measurement_shape, seed=1)


@every_operator
def test_the_adjoint_is_the_transpose(operator: SpectralOperator) -> None:
    x, y = images(), measurements(operator)
    left, right = (operator.forward(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@every_operator
def test_the_decomposition_is_that_of_the_operator(operator: SpectralOperator) -> None:
    x, y, values = images(), measurements(operator), operator.singular_values
    forward = operator.spectrum_to_measurement(values * operator.to_spectrum(x))
    torch.testing.assert_close(forward, operator.forward(x), rtol=0, atol=1e-12)
    adjoint = operator.from_spectrum(values * operator.measurement_to_spectrum(y))
    torch.testing.assert_close(adjoint, operator.adjoint(y), rtol=0, atol=1e-12)


@every_operator
def test_the_transform_to_the_spectrum_preserves_norms_and_has_its_inverse(operator: SpectralOperator) -> None:
    x = images()
    spectrum = operator.to_spectrum(x)
    torch.testing.assert_close(operator.from_spectrum(spectrum), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(spectrum.abs().square().sum(), x.square().sum(), rtol=1e-12, atol=0)
    y = operator.forward(x)
    torch.testing.assert_close(operator.project(y), y, rtol=0, atol=1e-12)


@every_operator
def test_the_pseudo_inverse_satisfies_the_conditions_of_penrose(operator: SpectralOperator) -> None:
    """Without singular values below the tolerance, A A^+ A differs from A by at most the tolerance."""
    x, y, other = images(), measurements(operator), normal(5, *SHAPE, seed=2)
    dropped = TOLERANCE * float(operator.singular_values.max()) * float(x.flatten(1).norm(dim=1).max())
    torch.testing.assert_close(
        operator.forward(operator.pseudo_inverse(operator.forward(x))), operator.forward(x), rtol=0, atol=dropped
    )
    inverse = operator.pseudo_inverse(y)
    again = operator.pseudo_inverse(operator.forward(inverse))
    torch.testing.assert_close(again, inverse, rtol=1e-9, atol=1e-9 * float(inverse.abs().max()))
    left = (operator.pseudo_inverse(operator.forward(x)) * other).sum()
    right = (operator.pseudo_inverse(operator.forward(other)) * x).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-9, abs=1e-9)  # A^+ A is symmetric


@every_operator
def test_float32_images_are_measured_as_float64_images_under_autocast(operator: SpectralOperator) -> None:
    x = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, adjoint = operator.forward(x.float()), operator.adjoint(operator.forward(x.float()))
    assert y.dtype == adjoint.dtype == torch.float32
    torch.testing.assert_close(y.double(), operator.forward(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(adjoint.double(), operator.adjoint(operator.forward(x)), rtol=0, atol=1e-5)


def test_area_downsampling_is_that_of_interpolate() -> None:
    expected = F.interpolate(images(), scale_factor=0.25, mode="area")
    torch.testing.assert_close(AreaDownsampling(SHAPE, 4).forward(images()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_downsampling_is_that_of_interpolate_and_pillow(factor: int) -> None:
    shape = (1, 16, 24)
    x = normal(2, *shape)
    y = BicubicDownsampling(shape, factor).forward(x)
    size = (16 // factor, 24 // factor)
    expected = F.interpolate(x, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    pillow = Image.fromarray(x[0, 0].float().numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    torch.testing.assert_close(y[0, 0].float(), torch.from_numpy(np.array(pillow)), rtol=0, atol=1e-5)


def test_a_gaussian_blur_is_that_of_torchvision() -> None:
    expected = vision.gaussian_blur(images(), kernel_size=[7, 7], sigma=[0.9, 0.9])
    torch.testing.assert_close(GaussianBlur(SHAPE, 0.9).forward(images()), expected, rtol=0, atol=1e-7)


def test_a_motion_blur_is_a_periodic_convolution_with_its_kernel() -> None:
    operator, x = MotionBlur(SHAPE, length=4.5, angle=70.0), images()
    expected = sum(
        operator.kernel[i, j] * torch.roll(x, (i, j), dims=(2, 3)) for i in range(SHAPE[1]) for j in range(SHAPE[2])
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(operator.forward(x), expected, rtol=0, atol=1e-12)


def test_a_motion_blur_follows_its_angle() -> None:
    horizontal, vertical = MotionBlur((1, 9, 9), 3), MotionBlur((1, 9, 9), 3, angle=90)
    torch.testing.assert_close(horizontal.kernel[0, [8, 0, 1]], torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(vertical.kernel, horizontal.kernel.mT, rtol=0, atol=1e-12)
    rising = MotionBlur((1, 9, 9), 5, angle=45).kernel
    assert float(rising[8, 1]) > 0.1 > float(rising[1, 1])  # up is the direction of smaller row numbers


def test_gray_images_are_those_of_pillow_up_to_rounding() -> None:
    pixels = torch.randint(256, (8, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pillow = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).convert("L"))).double()
    gray = Grayscale(SHAPE).forward(pixels.permute(2, 0, 1)[None].double())
    assert float((gray[0, 0] - pillow).abs().max()) <= 0.501


def test_the_coefficients_of_compressed_sensing_depend_on_the_seed_alone() -> None:
    first, same, other = (CompressedSensing(SHAPE, 0.25, seed) for seed in (3, 3, 4))
    assert first.measurement_shape == (round(0.25 * 3 * 8 * 12),)
    assert torch.equal(first.forward(images()), same.forward(images()))
    assert not torch.allclose(first.forward(images()), other.forward(images()))


def test_each_image_of_a_batch_can_have_its_own_hole() -> None:
    operator = Inpainting(SHAPE, torch.rand(5, 1, 8, 12, generator=torch.Generator().manual_seed(0)) < 0.5)
    rows = torch.tensor([3, 1])
    assert torch.equal(operator.select(rows).forward(images()[rows]), operator.forward(images())[rows])


@dataclass(frozen=True, eq=False)
class DenseOperator(LinearOperator):
    """An operator without known singular values, as users write it."""

    image_shape: tuple[int, int, int]
    matrix: Tensor

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (len(self.matrix),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).view(-1, *self.image_shape)


def test_the_pseudo_inverse_of_an_operator_without_singular_values_is_that_of_its_matrix() -> None:
    operator, y = DenseOperator((1, 3, 4), normal(7, 12)), normal(5, 7)
    expected = (y @ torch.linalg.pinv(operator.matrix).mT).view(5, 1, 3, 4)
    torch.testing.assert_close(operator.pseudo_inverse(y), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AreaDownsampling(SHAPE, 3), r"factor must be at least 1 and divide .*8 x 12.*, got 3"),
        (lambda: BicubicDownsampling(SHAPE, 0), "factor must be at least 1"),
        (lambda: GaussianBlur(SHAPE, 0.0), "std of the blur must be a finite number above 0, got 0.0"),
        (lambda: MotionBlur(SHAPE, 0.5), "length of the blur must be a finite number of at least 1, got 0.5"),
        (lambda: MotionBlur(SHAPE, 3, float("nan")), "angle of the blur must be a finite number of degrees, got nan"),
        (lambda: Grayscale((1, 8, 12)), r"3 channels \(red, green and blue\), got 1"),
        (lambda: CompressedSensing(SHAPE, 0.0), r"fraction of the measured coefficients must be in \(0, 1\], got 0.0"),
        (lambda: CompressedSensing(SHAPE, 0.5, -1), "seed of the measured coefficients must be at least 0, got -1"),
        (lambda: Inpainting(SHAPE, torch.ones(8, 8)), r"the mask must have the size of the images \(8 x 12 pixels"),
        (lambda: Inpainting(SHAPE, torch.ones(2, 8, 12)), r"1 or 3 channels\), got a mask of the shape \[2, 8, 12\]"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(build: type[LinearOperator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
