"""All linear operators, for tests of their common properties. Add a new operator to OPERATORS."""

import pytest
import torch
from torch import Tensor

from diffusion_lab.inverse_problems import (
    AreaDownsampling,
    BicubicDownsampling,
    CompressedSensing,
    GaussianBlur,
    Grayscale,
    IdentityOperator,
    Inpainting,
    LinearOperator,
    MotionBlur,
    SpectralOperator,
)

SHAPE = (3, 8, 12)


def hole_of_each_image(batch_size: int, shape: tuple[int, int, int]) -> Tensor:
    """Return another random hole for each image: [B, 1, H, W]."""
    return torch.rand(batch_size, 1, *shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5


OPERATORS: dict[str, SpectralOperator] = {
    "identity": IdentityOperator(SHAPE),
    "inpainting": Inpainting(SHAPE, hole_of_each_image(1, SHAPE)[0]),
    "inpainting, 5 holes": Inpainting(SHAPE, hole_of_each_image(5, SHAPE)),
    "area": AreaDownsampling(SHAPE, factor=2),
    "bicubic": BicubicDownsampling(SHAPE, factor=4),
    "gaussian blur": GaussianBlur(SHAPE, std=0.7),
    "gaussian blur, wider than the image": GaussianBlur(SHAPE, std=5.0),
    "motion blur": MotionBlur(SHAPE, length=3.5, angle=30.0),
    "gray": Grayscale(SHAPE),
    "compressed sensing": CompressedSensing(SHAPE, fraction=0.3, seed=1),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


def matrix_of(operator: LinearOperator) -> Tensor:
    """Return the matrix of an operator that is equal for all images, float64 [M, N]."""
    size = torch.Size(operator.image_shape).numel()
    columns = torch.eye(size, dtype=torch.float64).view(size, *operator.image_shape)
    return operator.forward(columns).flatten(1).mT
