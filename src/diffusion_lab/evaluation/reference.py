"""What samples are compared with: the features of a data set, or statistics that somebody wrote to a file."""

import json
import os
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.features import Features
from diffusion_lab.features.weights import checked_sha256
from diffusion_lab.fingerprints import digest
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.randomness import permutation
from diffusion_lab.reporting.progress import Display

MAX_ROWS = 50_000
"""Single images whose features are kept of a reference: of a larger one the same random part for every job."""

BATCH_SIZE = 100
"""Fixed: processors round features in another way for another number of images."""


class Reference(ABC):
    """The other side of a comparison.  name: as numbers carry it, such as the split."""

    name: str

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What a fingerprint says of it."""

    @abstractmethod
    def feature_sets(self, features: Features, rows: Mapping[str, bool], display: Display) -> dict[str, FeatureSet]:
        """The set as each output of the features that is a key of `rows` sees it.

        rows: for each output, whether features of single images are asked for.
        Every process must ask at the same time. Raises ValueError where the set does not have them.
        """


@dataclass(frozen=True)
class ImageReference(Reference):
    """A split of a data set, clean and unaugmented, seen once by each network of features and then kept in a cache.

    folder: of the cache, where each output of features is a file `.npz` with mu and sigma, as other tools read them.
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

    def feature_sets(self, features: Features, rows: Mapping[str, bool], display: Display) -> dict[str, FeatureSet]:
        ranks = Ranks.current()
        found = {output: _read(self.file(features, output), needed) for output, needed in rows.items()}
        # All or none: whoever lacks a file, such as on a node with a cache of its own, needs the others to make it.
        missing = [output for output in rows if not all(ranks.all_gather_object(found[output] is not None))]
        if missing:
            seen = self._seen(features, missing, display, ranks)
            for output, feature_set in seen.items():
                self._keep(features, output, feature_set, rows[output])
            found |= seen
        return {output: found_set for output, found_set in found.items() if found_set is not None}

    def file(self, features: Features, output: str) -> Path:
        """Where the statistics of an output are kept: another file for other images, weights, or rules."""
        key = digest([self.images.fingerprint, features.name, features.weights_sha256, features.resize, output])
        return self.folder / f"{self.split}-{features.name}-{output}-{key[:16]}.npz"

    @cached_property
    def _kept_rows(self) -> np.ndarray:
        """Which images keep their features: [M], growing."""
        size = len(self.images)
        return np.sort(permutation(seed=0, epoch=2, size=size)[:MAX_ROWS])

    def _seen(self, features: Features, outputs: list[str], display: Display, ranks: Ranks) -> dict[str, FeatureSet]:
        moments: dict[str, _Moments] = {output: _Moments() for output in outputs}
        kept = np.zeros(len(self.images), dtype=bool)
        kept[self._kept_rows] = True
        device = next(features.parameters()).device
        starts = ranks.shard(range(0, len(self.images), BATCH_SIZE))
        with display(f"{features.name} features of {self.split}", len(starts) * BATCH_SIZE) as advance:
            for start in starts:
                index = np.arange(start, min(start + BATCH_SIZE, len(self.images)))
                seen = features(self.images.gather(index).to(device))
                for output in outputs:
                    moments[output].add(seen[output].cpu(), torch.from_numpy(kept[index]), len(self.images) > MAX_ROWS)
                advance(len(index))
        return {output: moments[output].feature_set(ranks) for output in outputs}

    def _keep(self, features: Features, output: str, found: FeatureSet, with_rows: bool) -> None:
        if features.weights_sha256 is None:
            return  # an untrained network is another one at every start
        arrays: dict[str, Any] = {
            "mu": found.mean.numpy(),
            "sigma": found.covariance.numpy(),
            "count": np.int64(found.count),
        }
        if with_rows or found.count <= found.dimensions:
            assert found.rows is not None
            arrays["rows"] = found.rows.numpy()
        about = {"features": features.name, "weights_sha256": features.weights_sha256, "resize": features.resize}
        arrays["about"] = np.array(json.dumps(self.protocol() | about | {"output": output}))
        file = self.file(features, output)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as opened:
                np.savez(opened, **arrays)
            partial.replace(file)
        except OSError as error:  # the numbers do not depend on the cache
            print(f"note: statistics of the reference are not kept in {file}: {error.strerror}.", file=sys.stderr)


class FileReference(Reference):
    """Statistics in a `.npz` file with mu and sigma, as pytorch-fid, ADM's evaluator and EDM write them.

    Which features they are of, no such file says: they must be those of the samples. A file with mu_s and sigma_s has
    spatial ones too, one of our own cache also the features of single images.
    """

    KEYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        """Raises ValueError unless the file holds a mean and a covariance that fit each other."""
        self.path = path
        if not path.is_file():
            raise ValueError(f"reference must be a split or a file of statistics (.npz), got {path}, which is missing.")
        try:
            # Opened here: numpy leaves a file open whose archive it cannot read.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                self._arrays = {name: file[name] for name in file.files if name != "arr_0"}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"reference={path} cannot be read as .npz: {reason}") from error
        self._check()
        self._about: dict[str, Any] = json.loads(str(self._arrays["about"])) if "about" in self._arrays else {}
        self.name = self._about.get("split", path.stem)

    def protocol(self) -> dict[str, Any]:
        if self._about:  # the same numbers as from the images themselves
            return {key: self._about[key] for key in ("split", "fingerprint", "size", "rows")}
        count = self._arrays.get("count")
        rows = len(self._arrays["rows"]) if "rows" in self._arrays else 0
        size = None if count is None else int(count)
        return {"split": self.path.name, "fingerprint": checked_sha256(self.path, None), "size": size, "rows": rows}

    def feature_sets(self, features: Features, rows: Mapping[str, bool], display: Display) -> dict[str, FeatureSet]:
        return {output: self._feature_set(features, output, needed) for output, needed in rows.items()}

    def _feature_set(self, features: Features, output: str, with_rows: bool) -> FeatureSet:
        about = self._about
        for key, own in (("features", features.name), ("output", output), ("weights_sha256", features.weights_sha256)):
            if about and about[key] != own:
                raise ValueError(f"reference={self.path} is of other features: its {key} is {about[key]}, not {own}.")
        mean, covariance = (self._arrays.get(key) for key in (("mu", "sigma") if about else self.KEYS[output]))
        if mean is None or covariance is None:
            raise ValueError(
                f"reference={self.path} must hold {' and '.join(self.KEYS[output])} for {output} features."
            )
        if output == "pooled" and len(mean) != features.num_features:
            raise ValueError(
                f"reference={self.path} must be of {features.num_features} features, as {features.name} has, got "
                f"{len(mean)}."
            )
        kept = self._arrays.get("rows")
        if with_rows and kept is None:
            raise ValueError(
                f"reference={self.path} holds a mean and a covariance alone: fid needs no more, other metrics need the "
                "features of single images; leave reference out for them."
            )
        mu, sigma = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in (mean, covariance))
        single = None if kept is None else torch.from_numpy(kept)
        return FeatureSet(int(self._arrays.get("count", 0)), mu, sigma, single)

    def _check(self) -> None:
        pairs = [pair for pair in self.KEYS.values() if pair[0] in self._arrays or pair[1] in self._arrays]
        if not pairs:
            held = ", ".join(self._arrays) or "nothing else"
            raise ValueError(f"reference={self.path} must hold mu and sigma, got {held}.")
        for mu, sigma in pairs:
            mean, covariance = (np.asarray(self._arrays.get(key, 0.0)) for key in (mu, sigma))
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise ValueError(
                    f"reference={self.path} must hold {mu} [D] and {sigma} [D, D], got {list(mean.shape)} and "
                    f"{list(covariance.shape)}."
                )
            if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                raise ValueError(
                    f"reference={self.path} must hold finite numbers, got NaN or infinity in {mu} or {sigma}."
                )


class _Moments:
    """Features of this process's part of a set, added up or kept."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._sums: tuple[Tensor, Tensor] | None = None
        self._count = 0

    def add(self, features: Tensor, kept: Tensor, summed: bool) -> None:
        """features: float32 [B, D].  kept: [B], whose rows stay.  summed: where not all rows do."""
        self._rows.append(features[kept])
        self._count += len(features)
        if summed:
            exact = features.double()
            sums = exact.sum(0), exact.T @ exact
            self._sums = sums if self._sums is None else (self._sums[0] + sums[0], self._sums[1] + sums[1])

    def feature_set(self, ranks: Ranks) -> FeatureSet:
        """Of all ranks' parts together."""
        widths = [part.shape[1] for part in self._rows]
        dimensions = max(ranks.all_gather_object(max(widths, default=0)))
        rows = ranks.all_gather(torch.cat([*self._rows, torch.zeros(0, dimensions)]))
        if max(ranks.all_gather_object(self._sums is not None)) is False:
            return FeatureSet.of(rows)
        total, product = self._sums or (
            torch.zeros(dimensions, dtype=torch.float64),
            torch.zeros(dimensions, dimensions, dtype=torch.float64),
        )
        count = sum(ranks.all_gather_object(self._count))
        total, product = ranks.all_reduce_sum(total), ranks.all_reduce_sum(product)
        mean = total / count
        return FeatureSet(count, mean, (product - count * torch.outer(mean, mean)) / (count - 1), rows)


def _read(file: Path, with_rows: bool) -> FeatureSet | None:
    """Statistics from the cache, if they are there and hold what is needed."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays.files else None
            mean, covariance = (torch.from_numpy(arrays[key]) for key in ("mu", "sigma"))
            count = int(arrays["count"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    if rows is None and with_rows:
        return None
    return FeatureSet(count, mean, covariance, rows)
