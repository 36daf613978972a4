"""Inception features and the Fréchet distance, compared with torch-fidelity and torchmetrics.

    python benchmarks/features.py

Both load the same file of random weights of the real network and compute in float32. The distance is between two sets
of 2048 features; the error of each implementation is measured against an accurate computation.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from measuring import Row, interleave, main, timed
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lab.features import Inception
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import frechet_distance


def write_weights(path: Path) -> None:
    """Write random Inception weights whose activations keep their scale through the layers."""
    with (
        mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url"),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    generator = torch.Generator().manual_seed(7)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1, generator=generator)
            nn.init.uniform_(layer.running_var, 0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), path)


def feature_row(rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        write_weights(path)
        ours, theirs = Inception(path), FeatureExtractorInceptionV3("inception", ["2048"], str(path))
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        our_features, their_features = ours(pixels)["pooled"], theirs(pixels)[0]
        difference = float((our_features - their_features).norm() / their_features.norm())
        seconds = interleave(
            {"ours": lambda: timed(lambda: ours(pixels)), "peer": lambda: timed(lambda: theirs(pixels))}, rounds
        )
    note = f"relative difference {difference:.1e}"
    return Row(
        "Inception features of 16 images", "s", seconds["ours"], seconds["peer"], "torch-fidelity", 1.4, note=note
    )


def random_features(count: int, seed: int, dimensions: int = 2048) -> Tensor:
    """Return [count, dimensions] features that resemble a network's: after a ReLU, with a power-law spectrum."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(0))
    spectrum = torch.arange(1, dimensions + 1) ** -0.6
    return torch.relu((torch.randn(count, dimensions, generator=generator) * spectrum) @ mixing / 5 + 0.1 * seed)


def torchmetrics_distance(one: FeatureSet, other: FeatureSet) -> Tensor:
    """Return the Fréchet distance as torchmetrics computes it, from eigenvalues."""
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid(one.mean, one.covariance, other.mean, other.covariance)


def accurate_distance(one: FeatureSet, other: FeatureSet) -> Tensor:
    """Return the Fréchet distance from the singular values of the product of both matrix roots: slow and accurate."""
    roots = [
        vectors * values.clamp(min=0).sqrt()
        for values, vectors in map(torch.linalg.eigh, (one.covariance, other.covariance))
    ]
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace() - 2 * overlap


def distance_row(rounds: int, count: int, kind: str) -> Row:
    one, other = random_features(count, 1), random_features(count, 2)

    def new_sets() -> tuple[FeatureSet, FeatureSet]:  # a set caches its matrix root, which must not help the next round
        return FeatureSet.of(one), FeatureSet.of(other)

    def seconds(distance: Callable[[FeatureSet, FeatureSet], Tensor]) -> float:
        pair = new_sets()
        return timed(lambda: distance(*pair))

    exact = float(accurate_distance(*new_sets()))
    distances = {"ours": frechet_distance, "torchmetrics": torchmetrics_distance}
    error = {name: abs(float(distance(*new_sets())) - exact) for name, distance in distances.items()}
    taken = interleave({name: lambda f=distance: seconds(f) for name, distance in distances.items()}, rounds)
    note = f"error {error['ours']:.0e} at a distance of {exact:.4f}, torchmetrics {error['torchmetrics']:.0e}"
    what = f"Fréchet distance of 2048 features, {kind}"
    return Row(what, "s", taken["ours"], taken["torchmetrics"], "torchmetrics", 2.0, note=note)


def rows(arguments: argparse.Namespace) -> list[Row]:
    distances = ((8000, "full rank"), (1000, "fewer images than features"))
    return [
        feature_row(arguments.rounds),
        *(distance_row(min(arguments.rounds, 3), count, kind) for count, kind in distances),
    ]


if __name__ == "__main__":
    main(__doc__, rows)
