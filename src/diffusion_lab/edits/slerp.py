"""Spherical linear interpolation between noise tensors (Shoemake 1985)."""

from torch import Tensor

MIN_SINE = 1e-6
"""Sine of the angle between two directions below which they are considered parallel."""


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Return the point at a fraction of the great-circle arc from `first` to `second`, all of the same shape.

    The direction moves on the arc with constant speed: it is uniformly distributed for standard normal arguments. The
    squared norm is interpolated linearly, so that the mean square of the values remains 1. Fractions of 0 and 1 return
    the arguments unchanged.
    fraction: in [0, 1].  Raises ValueError for opposite directions, which many arcs connect.
    """
    if fraction in (0, 1):
        return second if fraction else first
    x, y = first.double(), second.double()
    norm_x, norm_y = x.norm(), y.norm()
    cosine = ((x / norm_x) * (y / norm_y)).sum().clamp(-1, 1)
    angle = cosine.arccos()
    norm = ((1 - fraction) * norm_x**2 + fraction * norm_y**2).sqrt()
    if angle.sin() < MIN_SINE:
        if cosine < 0:
            raise ValueError("`second` must not have the opposite direction of `first`, which many arcs connect.")
        direction = x / norm_x
    else:
        direction = ((1 - fraction) * angle).sin() * x / norm_x + (fraction * angle).sin() * y / norm_y
    point: Tensor = norm * direction / direction.norm()
    return point.to(first.dtype)
