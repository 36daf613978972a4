"""References that samples are compared with: a split of a data set, or a feature statistics file."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lab.data.images import Images
from diffusion_lab.data.npz_arrays import array_names
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.moments import Moments
from diffusion_lab.evaluation.statistics_files import read_about, read_statistics
from diffusion_lab.evaluation.torch_statistics import SUFFIXES, read_torch_statistics
from diffusion_lab.features import Features
from diffusion_lab.features.weights import verify_sha256
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.fingerprints import digest, short
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.randomness import permutation
from diffusion_lab.reporting.progress import Display

logger = logging.getLogger(__name__)

MAX_ROWS = 50_000
"""Maximum number of images whose individual features are stored; larger references store a random subset."""

BATCH_SIZE = 100
"""Batch size of feature extraction. The size is fixed, because the rounding of features depends on the batch size."""


class Reference(ABC):
    """A set of images that samples are compared with.  name: last part of metric names, such as train."""

    name: str

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the values that identify the reference in fingerprints."""

    @abstractmethod
    def feature_sets(
        self, features: Features, needs_rows: Mapping[str, bool], display: Display
    ) -> dict[str, FeatureSet]:
        """Return the feature set of each requested output of `features`. Collective: call on all ranks.

        needs_rows: for each requested output, whether the features of single images are needed.
        Raises ValueError if the reference does not have the requested features.
        """

    def num_to_extract(self, features: Features, needs_rows: Mapping[str, bool]) -> int:
        """Return the number of images whose features `feature_sets` extracts: 0 if all statistics are stored."""
        return 0


@dataclass(frozen=True)
class ImageReference(Reference):
    """A split of a data set, without noise and augmentation. Its features are extracted once and then cached.

    folder: cache folder. It contains a `.npz` file for each output of a feature network; `FileReference` describes the
        format.
    """

    images: Images
    split: str
    folder: Path

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.split

    def protocol(self) -> dict[str, Any]:
        size = len(self.images)
        return {"split": self.split, "fingerprint": self.images.fingerprint, "size": size, "rows": min(size, MAX_ROWS)}

    def feature_sets(
        self, features: Features, needs_rows: Mapping[str, bool], display: Display
    ) -> dict[str, FeatureSet]:
        ranks = Ranks.current()
        found = {output: _read_cached(self.file(features, output), needed) for output, needed in needs_rows.items()}
        # If a rank lacks a file, for example on a node with a separate cache, all ranks extract the features together.
        missing = [output for output in needs_rows if not all(ranks.all_gather_object(found[output] is not None))]
        if missing:
            extracted = self._extract(features, missing, display, ranks)
            for output, feature_set in extracted.items():
                self._write_to_cache(features, output, feature_set, needs_rows[output])
            found |= extracted
        return {output: feature_set for output, feature_set in found.items() if feature_set is not None}

    def num_to_extract(self, features: Features, needs_rows: Mapping[str, bool]) -> int:
        is_cached = all(_is_cached(self.file(features, output), needed) for output, needed in needs_rows.items())
        return 0 if is_cached else len(self.images)

    def file(self, features: Features, output: str) -> Path:
        """Return the path of an output's cached statistics, which depends on images, weights and resizing."""
        key = digest([self.images.fingerprint, features.name, features.weights_sha256, features.resize, output])
        return self.folder / f"{self.split}-{features.name}-{output}-{key[:16]}.npz"

    @cached_property
    def stored_rows(self) -> np.ndarray:
        """Indices of the images whose individual features are stored, in ascending order: [M]."""
        size = len(self.images)
        return np.sort(permutation(seed=0, epoch=2, size=size)[:MAX_ROWS])

    def _extract(self, features: Features, outputs: list[str], display: Display, ranks: Ranks) -> dict[str, FeatureSet]:
        moments: dict[str, Moments] = {output: Moments() for output in outputs}
        stored = np.zeros(len(self.images), dtype=bool)
        stored[self.stored_rows] = True
        starts = ranks.shard(range(0, len(self.images), BATCH_SIZE))
        num_images = sum(min(BATCH_SIZE, len(self.images) - start) for start in starts)
        with display(f"{features.name} features of {self.split}", num_images) as advance:
            for start in starts:
                index = np.arange(start, min(start + BATCH_SIZE, len(self.images)))
                extracted = features(self.images.gather(index).to(features.device))
                mask, needs_sums = torch.from_numpy(stored[index]), len(self.images) > MAX_ROWS
                for output in outputs:
                    moments[output].add(extracted[output].cpu(), mask, needs_sums)
                advance(len(index))
        return {output: moments[output].feature_set(ranks) for output in outputs}

    def save(self, path: Path, features: Features, needs_rows: Mapping[str, bool], display: Display) -> None:
        """Write the statistics of the requested outputs to an `.npz` file. Collective: call on all ranks.

        The file has mu and sigma of the pooled features and mu_s and sigma_s of the spatial features, as ADM's files.
        """
        found = self.feature_sets(features, needs_rows, display)
        arrays: dict[str, Any] = {}
        for output, feature_set in found.items():
            own = self._arrays(features, "pooled", feature_set, needs_rows[output])
            names = dict(zip(FileReference.KEYS["pooled"], FileReference.KEYS[output], strict=True))
            arrays |= own if output == "pooled" else {names[key]: own[key] for key in names} | {"about": own["about"]}
        if Ranks.current().rank == 0:
            with atomic_file(path) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)

    def _write_to_cache(self, features: Features, output: str, feature_set: FeatureSet, with_rows: bool) -> None:
        if features.weights_sha256 is None:
            return  # an untrained network has different weights in each process
        arrays: dict[str, Any] = self._arrays(features, output, feature_set, with_rows)
        path = self.file(features, output)
        try:
            with atomic_file(path, concurrent=True) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
        except OSError as error:  # the metrics do not depend on the cache
            logger.info("the reference statistics are not cached in %s: %s.", path, error.strerror)

    def _arrays(
        self, features: Features, output: str, feature_set: FeatureSet, with_rows: bool
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a statistics file.  output: name of the output in the file."""
        arrays = {
            "mu": feature_set.mean.numpy(),
            "sigma": feature_set.covariance.numpy(),
            "count": np.array(feature_set.count),
        }
        if with_rows or feature_set.count <= feature_set.dimensions:
            assert feature_set.rows is not None
            arrays["rows"] = feature_set.rows.numpy()
        origin = {"features": features.name, "weights_sha256": features.weights_sha256, "resize": features.resize}
        return arrays | {"about": np.array(json.dumps(self.protocol() | origin | {"output": output}))}


class FileReference(Reference):
    """Feature statistics in a file: mu (mean) and sigma (covariance), features of single images (rows), or both.

    pytorch-fid, ADM, EDM and clean-fid write such `.npz` files, and torch-fidelity such `.pt` files. A file from these
    programs does not identify its feature network; the user must choose the same features for the samples. A file with
    mu_s and sigma_s also has statistics of spatial features. A file of `save_statistics`, or from the cache of
    `ImageReference`, identifies its feature network.
    """

    KEYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        """Raise ValueError unless the file contains a mean and a covariance of matching shapes, or features."""
        self.path = path
        if not path.is_file():
            raise ValueError(f"`reference` must be a split or an existing statistics file (.npz), got {path}.")
        is_torch = path.suffix.lower() in SUFFIXES
        try:
            self._arrays, self._names = (read_torch_statistics if is_torch else read_statistics)(path)
            self._origin = read_about(self._arrays)
        except ValueError as error:
            kind = "a cache of torch-fidelity" if is_torch else ".npz"
            raise ValueError(f"reference={path} cannot be read as {kind}: {error}.") from None
        self._check()
        self.name = self._origin.get("split", path.stem)

    def protocol(self) -> dict[str, Any]:
        if self._origin:  # a cache file gives the same metric values as its images
            return {key: self._origin[key] for key in ("split", "fingerprint", "size", "rows")}
        count = self._arrays.get("count")
        rows = len(self._arrays["rows"]) if "rows" in self._arrays else 0
        size = None if count is None else int(count)
        return {"split": self.path.name, "fingerprint": verify_sha256(self.path), "size": size, "rows": rows}

    def feature_sets(
        self, features: Features, needs_rows: Mapping[str, bool], display: Display
    ) -> dict[str, FeatureSet]:
        return {output: self._feature_set(features, output, needed) for output, needed in needs_rows.items()}

    def _feature_set(self, features: Features, output: str, with_rows: bool) -> FeatureSet:
        origin = self._origin
        # The output of mu, sigma and rows. A file of `save_statistics` may also have mu_s and sigma_s.
        own_output = output if not origin or (output == "spatial" and "mu_s" in self._arrays) else origin["output"]
        expected = {"features": features.name, "weights_sha256": features.weights_sha256}
        if own_output != output:
            raise ValueError(
                f"reference={self.path} must have the same features as the samples (output={output}), got "
                f"output={short(own_output)}."
            )
        for key, value in expected.items():
            if origin and origin[key] != value:
                raise ValueError(
                    f"reference={self.path} must have the same features as the samples ({key}={value}), got "
                    f"{key}={short(origin[key])}."
                )
        is_own = bool(origin) and origin["output"] == output
        mean, covariance = (self._arrays.get(key) for key in (("mu", "sigma") if is_own else self.KEYS[output]))
        rows = self._arrays.get("rows") if is_own or output == "pooled" else None
        count = int(self._arrays.get("count", 0))
        if mean is None and covariance is None and rows is not None:
            computed = FeatureSet.of(torch.from_numpy(rows.astype(np.float32)))
            mean, covariance, count = computed.mean.numpy(), computed.covariance.numpy(), computed.count
        if mean is None or covariance is None:
            raise ValueError(
                f"reference={self.path} must contain {' and '.join(self.KEYS[output])} for {output} features, got "
                f"{', '.join(self._names)}."
            )
        if output == "pooled" and features.num_features not in (None, len(mean)):
            raise ValueError(
                f"reference={self.path} must have {features.num_features} features (as {features.name} has), got "
                f"{len(mean)}."
            )
        if with_rows and rows is None:
            raise ValueError(
                f"reference={self.path} must contain the features of single images for metrics other than fid and "
                "sfid, got only a mean and a covariance; set reference=train for these metrics."
            )
        mu, sigma = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in (mean, covariance))
        return FeatureSet(count, mu, sigma, None if rows is None else torch.from_numpy(rows.astype(np.float32)))

    def _check(self) -> None:
        pairs = [pair for pair in self.KEYS.values() if pair[0] in self._arrays or pair[1] in self._arrays]
        rows = self._arrays.get("rows")
        if not pairs and rows is None:
            names = ", ".join(self._names) or "neither"
            raise ValueError(f"reference={self.path} must contain mu and sigma, got {names}.")
        if rows is not None and len(rows) < 2:
            raise ValueError(f"reference={self.path} must contain at least 2 rows, got {len(rows)}.")
        if rows is not None and not np.isfinite(rows).all():
            raise ValueError(f"reference={self.path} must contain finite numbers, got NaN or infinity in rows.")
        for mu, sigma in pairs:
            mean, covariance = (np.asarray(self._arrays.get(key, 0.0)) for key in (mu, sigma))
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise ValueError(
                    f"reference={self.path} must contain {mu} [D] and {sigma} [D, D], got {list(mean.shape)} and "
                    f"{list(covariance.shape)}."
                )
            if rows is not None and mu == "mu" and rows.shape[1] != len(mean):
                raise ValueError(f"reference={self.path} must contain rows [M, {len(mean)}], got {list(rows.shape)}.")
            if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                raise ValueError(
                    f"reference={self.path} must contain finite numbers, got NaN or infinity in {mu} or {sigma}."
                )
        if (count := self._arrays.get("count")) is not None and not 0 <= int(count) < 2**63:
            raise ValueError(f"reference={self.path} must contain a count of at least 0, got {int(count)}.")


def _is_cached(file: Path, with_rows: bool) -> bool:
    """Return whether a cache file can be opened and contains the requested arrays, without reading them."""
    return {"mu", "sigma", "count", *(["rows"] if with_rows else [])} <= array_names(file)


def _read_cached(file: Path, with_rows: bool) -> FeatureSet | None:
    """Return the statistics in a cache file, or None if the file is missing, damaged or incomplete.

    with_rows: whether the file must also contain the features of single images.
    """
    try:
        arrays, _ = read_statistics(file)
        mean, covariance = (torch.from_numpy(arrays[key]) for key in ("mu", "sigma"))
        count = int(arrays["count"])
    except (ValueError, KeyError):
        return None
    rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else None
    is_damaged = mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not 0 <= count < 2**63
    is_damaged |= not all(np.isfinite(arrays[key]).all() for key in ("mu", "sigma", "rows") if key in arrays)
    if is_damaged or (rows is None and with_rows) or (rows is not None and rows.shape[1] != len(mean)):
        return None
    return FeatureSet(count, mean, covariance, rows)
