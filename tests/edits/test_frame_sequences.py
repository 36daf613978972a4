"""Paths of frames: spherical interpolation, closed walks, and the settings that are refused."""

import math
from collections.abc import Callable

import pytest
import torch

from diffusion_lab.edits import FrameSequence, Interpolate, Morph, Place, Sweep, Walk, slerp
from diffusion_lab.process import CosineSchedule, GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM
from support.oracles import GaussianOracle


def angle(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double().flatten(), second.double().flatten(), 0).acos())


def test_slerp_is_exact_at_its_ends_and_moves_at_constant_speed_with_a_linear_squared_norm() -> None:
    first, second = ImageNoise([3, 4], (3, 8, 6)).draw()
    assert slerp(first, second, 0) is first
    assert slerp(first, second, 1) is second
    for fraction in (0.1, 0.25, 0.7):
        point = slerp(first, second, fraction)
        assert angle(first, point) == pytest.approx(fraction * angle(first, second), abs=1e-5)
        expected = (1 - fraction) * float(first.square().sum()) + fraction * float(second.square().sum())
        assert float(point.square().sum()) == pytest.approx(expected, rel=1e-6)
    same = second * (first.norm() / second.norm())
    assert float(slerp(first, same, 0.4).norm()) == pytest.approx(float(first.norm()), rel=1e-6)


def test_the_noise_between_stops_is_standard_normal_in_its_mean_and_covariance() -> None:
    first, second = torch.randn(2, 20_000, 5, generator=torch.Generator().manual_seed(0))
    points = torch.stack([slerp(x, y, 0.5) for x, y in zip(first[:4000], second[:4000], strict=True)])
    assert points.mean(dim=0).abs().max() < 4 / math.sqrt(4000)
    # the standard error of a variance is sqrt(2 / 4000) = 0.022; a linear interpolation would have variances of 0.5
    assert (torch.cov(points.T) - torch.eye(5)).abs().max() < 0.08


def test_the_noise_of_parallel_stops_stays_and_opposite_stops_are_refused() -> None:
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(noise, noise, 0.3), noise)
    with pytest.raises(ValueError, match="opposite direction"):
        slerp(noise, -noise, 0.3)


def test_frames_are_evenly_placed_and_a_walk_ends_where_it_starts() -> None:
    walk = Walk(num_frames=12, seeds=[4, 9, 2])
    assert [walk.place(k, 3) for k in (0, 1, 4, 11)] == [
        Place(0, 1, 0), Place(0, 1, 0.25), Place(1, 2, 0), Place(2, 0, 0.75),
    ]  # fmt: skip
    assert walk.place(12, 3) == walk.place(0, 3)
    path = Interpolate(num_frames=5, seeds=[4, 9, 2])
    assert [path.place(k, 3) for k in (0, 1, 2, 4)] == [
        Place(0, 1, 0), Place(0, 1, 0.5), Place(1, 2, 0), Place(2, 2, 0),
    ]  # fmt: skip


def test_frames_on_an_arc_are_equally_far_apart_as_the_exact_denoiser_of_a_gaussian_predicts() -> None:
    process = GaussianProcess(CosineSchedule())
    first, second = ImageNoise(2, (3, 16, 16)).draw()
    second = second * (first.norm() / second.norm())
    path = Interpolate(num_frames=9)
    noise = torch.stack([slerp(first, second, k / 8) for k in range(9)])
    assert [path.place(k, 2).fraction for k in range(8)] == [k / 8 for k in range(8)]
    images = DDIM(process, num_steps=200).sample(GaussianOracle(process, mean=0.1, std=0.2), noise)
    distances = (images[1:] - images[:-1]).flatten(1).norm(dim=1)
    # the probability flow maps noise to mean + std * noise, so that distances are chords of the arc times std
    chord = 2 * float(first.norm()) * math.sin(angle(first, second) / 16)
    assert float(distances.max() / distances.mean()) == pytest.approx(1, abs=1e-4)
    assert float(distances.mean()) == pytest.approx(0.2 * chord, rel=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Walk(num_frames=1), "num_frames must be a whole number of at least 2, got 1"),
        (lambda: Morph(num_frames=2.5), "num_frames must be a whole number of at least 2, got 2.5"),  # type: ignore[arg-type]
        (lambda: Interpolate(seeds=[3]), r"seeds must be a list of at least two whole numbers .*, got \[3\]"),
        (lambda: Interpolate(seeds=[3, -1]), r"seeds must be a list of at least two whole numbers .*, got \[3, -1\]"),
        (lambda: Interpolate(seeds=7), "seeds must be a list of at least two whole numbers .*, got 7"),  # type: ignore[arg-type]
        (lambda: Interpolate(seeds=[3, 3]), r"seeds must differ from the next seed, got 3 twice in a row"),
        (lambda: Walk(seeds=[3, 5, 3]), r"seeds must differ from the next seed, got 3 twice in a row"),
        (lambda: Sweep(guidance_scales=[2.0]), r"guidance_scales must be a list of at least two .*, got \[2.0\]"),
        (lambda: Sweep(guidance_scales=[1, -2]), r"guidance_scales must be a list of at least two .*, got \[1, -2\]"),
    ],
)
def test_settings_of_sequences_that_make_no_path_are_refused(build: Callable[[], FrameSequence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
