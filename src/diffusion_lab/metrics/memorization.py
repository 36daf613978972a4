"""Memorization: samples that are too close to training images, compared with images that were held out of training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.metrics.cells import assign_cells, cell_centers
from diffusion_lab.metrics.feature_set import FeatureSet, require_feature_sets
from diffusion_lab.metrics.metric import Metric, NearPair
from diffusion_lab.metrics.nearest import nearest
from diffusion_lab.randomness import permutation

NUM_PAIRS = 48
"""Number of the nearest pairs that are shown."""

IMAGES_PER_CELL, MAX_CELLS = 100, 50
"""Default number of cells: one per 100 images of the smaller set, and at most 50."""


@dataclass(frozen=True)
class Memorization(Metric):
    """Copies of training images among the samples, in three statistics of the distance to the nearest training image.

    One random half of the held-out images calibrates the statistics. The other half is measured in the same way as the
    samples, and gives the values of a model that copies nothing (names with held_out).

    memorized_share: fraction of the samples closer to a training image than the threshold, which a new image undercuts
        with the probability `share`, according to the calibration half.
    c_t: C_T of Meehan et al. (2020): Mann-Whitney U of the distances of samples and calibration half, as a z-score, in
        each cell; the mean over cells, weighted by the fraction of the calibration half in the cell.
    authenticity: fraction of the samples that are farther from their nearest training image than this training image
        from its nearest other one (Alaa et al. 2022).

    share: see memorized_share.
    num_cells: number of k-means cells of the training images; None chooses it by the sizes of the sets.
    min_in_cell: smallest number of images of both sets in a cell; C_T leaves out other cells.
    Raises ValueError for a share outside of (0, 0.5), num_cells or min_in_cell below 1; `measure` raises it for a
    reference without held-out images, or with fewer than 2 * min_in_cell of them.

    >>> from dataclasses import replace
    >>> from diffusion_lab import FashionCNN, FeatureSet, Memorization
    >>> training, held_out = torch.randn(500, 8), torch.randn(200, 8)  # features of images
    >>> reference = replace(FeatureSet.of(training), held_out=held_out)
    >>> copies = FeatureSet.of(training[:50])
    >>> Memorization(FashionCNN()).measure(copies, reference)["memorized_share"]
    1.0
    """

    choice: ClassVar[str] = "memorization"
    meanings: ClassVar[Mapping[str, str]] = {
        "memorized_share": "fraction of the samples that are closer to a training image than the threshold",
        "memorized_share_held_out": "memorized_share of held-out images, which no model has copied",
        "memorized_threshold": "distance to the nearest training image that few held-out images undercut",
        "c_t": "z-score of the distances to the training images against those of held-out images; far below 0: copies",
        "c_t_std": "standard deviation of c_t if samples are as far from training images as held-out images are",
        "c_t_held_out": "c_t of held-out images, which no model has copied",
        "c_t_held_out_std": "standard deviation of c_t_held_out",
        "authenticity": "fraction of the samples whose nearest training image has a nearer training image",
        "authenticity_held_out": "authenticity of held-out images, which no model has copied",
    }
    directions: ClassVar[Mapping[str, bool | None]] = {
        **dict.fromkeys(("memorized_share_held_out", "memorized_threshold", "authenticity_held_out")),
        **dict.fromkeys(("c_t", "c_t_std", "c_t_held_out", "c_t_held_out_std")),
        "authenticity": True,
    }
    needs_reference: ClassVar[bool] = False
    needs_held_out: ClassVar[bool] = True

    share: float = 0.01
    num_cells: int | None = None
    min_in_cell: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 0.5:
            raise ValueError(f"share must be in (0, 0.5), got {self.share}.")
        for name in ("num_cells", "min_in_cell"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    @property
    def min_images(self) -> int:
        return self.min_in_cell

    @property
    def min_held_out(self) -> int:
        return 2 * self.min_in_cell

    def caution_for_sizes(self, num_samples: int, num_reference: int) -> str | None:
        """num_reference: number of held-out images."""
        half = num_reference // 2
        if int(self.share * (half + 1)) >= 5:
            return None
        return (
            f"has an inexact threshold, because {100 * self.share:g}% of {half:,} held-out images are fewer than 5 "
            f"images; hold out at least {round(10 / self.share):,} images"
        )

    def for_sizes(self, num_samples: int, num_reference: int) -> "Memorization":
        """Return the metric with the number of cells that is used.  num_reference: number of held-out images."""
        smaller = min(num_samples, num_reference // 2)
        return replace(self, num_cells=self.num_cells or max(1, min(MAX_CELLS, smaller // IMAGES_PER_CELL)))

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Return the metric values.  reference: features of all training images and, as `held_out`, of others."""
        return self.measure_with_pairs(samples, reference)[0]

    def measure_with_pairs(
        self, samples: FeatureSet, reference: FeatureSet
    ) -> tuple[dict[str, float], tuple[NearPair, ...]]:
        require_feature_sets(samples, reference)
        generated, training, held_out = samples.require_rows(), reference.require_rows(), reference.held_out
        if held_out is None or len(held_out) < self.min_held_out:
            given = "none" if held_out is None else len(held_out)
            raise ValueError(f"`reference` must have at least {self.min_held_out} held-out images, got {given}.")
        if len(training) < 2:
            raise ValueError(f"`reference` must contain at least 2 images, got {len(training)}.")
        if len(widths := {each.shape[1] for each in (generated, training, held_out)}) > 1:
            raise ValueError(
                f"all images must have the same number of features, got {' and '.join(map(str, sorted(widths)))}."
            )
        self.note_caution(len(generated), len(held_out))
        metric = self.for_sizes(len(generated), len(held_out))
        assert metric.num_cells is not None
        device = self.features.device if self.features.device.type == "cuda" else torch.device("cpu")
        space = _TrainingSpace(training.to(device), min(metric.num_cells, len(training)))
        order = torch.from_numpy(permutation(seed=0, epoch=3, size=len(held_out)))
        calibration, other = (space.place(held_out[half]) for half in torch.tensor_split(order, 2))
        placed = space.place(generated)
        threshold = _threshold(calibration.distance, self.share)
        c_t, held_out_c_t = (_c_t(each, calibration, self.min_in_cell) for each in (placed, other))
        values = {
            "memorized_share": _share_below(placed.distance, threshold),
            "memorized_share_held_out": _share_below(other.distance, threshold),
            "memorized_threshold": threshold,
            **dict(zip(("c_t", "c_t_std"), c_t, strict=True)),
            **dict(zip(("c_t_held_out", "c_t_held_out_std"), held_out_c_t, strict=True)),
            "authenticity": float(placed.is_authentic.double().mean()),
            "authenticity_held_out": float(other.is_authentic.double().mean()),
        }
        chosen = placed.distance.argsort(stable=True)[:NUM_PAIRS].tolist()
        return values, tuple(NearPair(k, int(placed.index[k]), float(placed.distance[k]), threshold) for k in chosen)


@dataclass(frozen=True)
class _Placed:
    """Position of N images relative to the training images.

    distance: distance to the nearest training image, float64 [N].  index: index of this training image, int64 [N].
    cell: cell of the image, int64 [N].
    is_authentic: whether this training image has a nearer training image than the image, bool [N].
    """

    distance: Tensor
    index: Tensor
    cell: Tensor
    is_authentic: Tensor


@dataclass(frozen=True)
class _TrainingSpace:
    """Feature space with the training images `rows` [M, D], divided into num_cells cells."""

    rows: Tensor
    num_cells: int

    @cached_property
    def centers(self) -> Tensor:
        return cell_centers(self.rows, self.num_cells)

    def place(self, rows: Tensor) -> _Placed:
        rows = rows.to(self.rows.device)
        distance, index = nearest(rows, self.rows)
        used, position = torch.unique(index, return_inverse=True)
        spacing, _ = nearest(self.rows[used.to(self.rows.device)], self.rows, own=used)
        cell = assign_cells(rows, self.centers).cpu()
        # A copy of a training image is not authentic, even if another training image has the same features.
        return _Placed(distance, index, cell, distance > spacing[position])


def _threshold(distances: Tensor, share: float) -> float:
    """Return the distance that a further distance of the same distribution undercuts with the probability `share`.

    It is the k-th smallest of the n distances with k = share * (n + 1), rounded down: the n + 1 ranks of a further
    distance are equally probable (Vovk et al. 2005). If this is 0, it is the smallest distance.
    """
    k = max(1, int(share * (len(distances) + 1) + 1e-9))
    return float(distances.kthvalue(k).values)


def _share_below(distances: Tensor, threshold: float) -> float:
    # An exact copy counts even if the threshold is 0, because held-out images have the features of training images.
    return float(((distances < threshold) | (distances == 0)).double().mean())


def _c_t(samples: _Placed, held_out: _Placed, min_in_cell: int) -> tuple[float, float]:
    """Return C_T and its standard deviation under equal distributions; (nan, nan) if no cell has enough images.

    The distance is that to the nearest of all training images. The code of Meehan et al. (2020) searches only the
    training images in the same cell, and adds a continuity correction of 0.5 to U.
    """
    total, weight_sum, variance = 0.0, 0.0, 0.0
    for cell in range(int(held_out.cell.max()) + 1):
        ours, theirs = samples.distance[samples.cell == cell], held_out.distance[held_out.cell == cell]
        if min(len(ours), len(theirs)) < min_in_cell:
            continue
        weight = len(theirs) / len(held_out.cell)
        total, weight_sum, variance = total + weight * _z_u(ours, theirs), weight_sum + weight, variance + weight**2
    if not weight_sum:
        return float("nan"), float("nan")
    return total / weight_sum, variance**0.5 / weight_sum


def _z_u(ours: Tensor, theirs: Tensor) -> float:
    """Return the z-score of Mann-Whitney's U, the number of pairs with ours > theirs; a tie counts half."""
    num_ours, num_theirs = len(ours), len(theirs)
    ordered = theirs.sort().values
    below, up_to = (torch.searchsorted(ordered, ours, right=right).double() for right in (False, True))
    u = float((below + up_to).sum()) / 2
    std = math.sqrt(num_ours * num_theirs * (num_ours + num_theirs + 1) / 12)
    return (u - num_ours * num_theirs / 2) / std
