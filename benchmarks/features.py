"""Inception features and the Fréchet distance, beside torch-fidelity and torchmetrics.

    python benchmarks/features.py

Random weights of the real network from a file, in float32. The distance is of two sets of 2048 features: the matrix
root beside the eigenvalues that torchmetrics takes, and what each is off by.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from measuring import Row, in_turns, main, timed
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as original

from diffusion_lab.features import Inception
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import frechet_distance


def write_weights(path: Path) -> None:
    """Random weights, such that signals keep their size through the layers."""
    with (
        mock.patch.object(original, "load_state_dict_from_url"),
        mock.patch.object(original.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = original.FeatureExtractorInceptionV3("inception", ["2048"])
    generator = torch.Generator().manual_seed(7)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1, generator=generator)
            nn.init.uniform_(layer.running_var, 0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), path)


def of_features(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        write_weights(path)
        ours, theirs = Inception(path), original.FeatureExtractorInceptionV3("inception", ["2048"], str(path))
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        mine, other = ours(pixels)["pooled"], theirs(pixels)[0]
        change = float((mine - other).norm() / other.norm())
        found = in_turns(
            {"ours": lambda: timed(lambda: ours(pixels)), "peer": lambda: timed(lambda: theirs(pixels))}, rounds
        )
    what = "Inception features of 16 images"
    return [Row(what, "s", found["ours"], found["peer"], "torch-fidelity", 1.4, note=f"relative change {change:.1e}")]


def rows_of_features(count: int, seed: int, dimensions: int = 2048) -> Tensor:
    """Like those of a network: after a ReLU, with a spectrum that falls as a power law."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(0))
    spectrum = torch.arange(1, dimensions + 1) ** -0.6
    return torch.relu((torch.randn(count, dimensions, generator=generator) * spectrum) @ mixing / 5 + 0.1 * seed)


def by_eigenvalues(one: FeatureSet, other: FeatureSet) -> Tensor:
    """As torchmetrics does."""
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid(one.mean, one.covariance, other.mean, other.covariance)


def exactly(one: FeatureSet, other: FeatureSet) -> Tensor:
    """By the singular values of the product of both roots, the most exact way."""
    roots = [
        vectors * values.clamp(min=0).sqrt()
        for values, vectors in map(torch.linalg.eigh, (one.covariance, other.covariance))
    ]
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace() - 2 * overlap


def of_distance(rounds: int, count: int, kind: str) -> Row:
    one, other = rows_of_features(count, 1), rows_of_features(count, 2)

    def fresh() -> tuple[FeatureSet, FeatureSet]:  # what a set keeps of its root is not to help the next round
        return FeatureSet.of(one), FeatureSet.of(other)

    def seconds(way: Callable[[FeatureSet, FeatureSet], Tensor]) -> float:
        pair = fresh()
        return timed(lambda: way(*pair))

    truth = float(exactly(*fresh()))
    ways = {"ours": frechet_distance, "torchmetrics": by_eigenvalues}
    off = {name: abs(float(way(*fresh())) - truth) for name, way in ways.items()}
    taken = in_turns({name: lambda way=way: seconds(way) for name, way in ways.items()}, rounds)
    note = f"off by {off['ours']:.0e} of {truth:.4f}, torchmetrics by {off['torchmetrics']:.0e}"
    what = f"Fréchet distance of 2048 features, {kind}"
    return Row(what, "s", taken["ours"], taken["torchmetrics"], "torchmetrics", 2.0, note=note)


def rows(arguments: argparse.Namespace) -> list[Row]:
    distances = ((8000, "full rank"), (1000, "fewer images than features"))
    return [
        *of_features(arguments.rounds),
        *(of_distance(min(arguments.rounds, 3), count, kind) for count, kind in distances),
    ]


if __name__ == "__main__":
    main(__doc__, rows)
