"""A trained network -> numbers: one pass of sampling and one of features serve all metrics, on any ranks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.reference import Reference
from diffusion_lab.features import Features
from diffusion_lab.fingerprints import VERSION, describe
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.latents import Pixels
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.metrics.metric import Metric, full_name
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.reporting.progress import Display, progress_bar

Look = Callable[[range, Tensor], None]
"""Told (seeds, their images as uint8 [B, C, H, W]) once for each batch of this process."""

FeatureSets = dict[tuple[int, str], FeatureSet]
"""By the identity of the network of features and the name of its output."""


@dataclass(frozen=True)
class Number:
    """A number, its name, and its protocol: all that must be the same for another to be comparable."""

    name: str
    value: float
    fingerprint: dict[str, Any]


@dataclass
class Evaluator:
    """The first num_samples images from `seed` on, measured.

    Every process draws its batches, and every metric is computed by at least one; all know every number.
    precision: of sampling, for the fingerprint.  reference: what metrics compare with; None for those that do not.
    seconds: spent so far in "sampling", "features" and "statistics", and in "means over images" where there were any.
    """

    images: SeededImages
    reference: Reference | None
    num_samples: int
    seed: int = 0
    precision: str = "32-true"
    display: Display = progress_bar
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("sampling", "features", "statistics"), 0.0)
    )

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        self._references: FeatureSets = {}

    def require(self, metrics: Sequence[Metric]) -> None:
        """Raises ValueError where a set is too small for a metric: before hours of sampling."""
        for metric in metrics:
            if self.num_samples < metric.min_images:
                raise ValueError(
                    f"num_samples must be at least {metric.min_images} for {type(metric).__name__}, got "
                    f"{self.num_samples}."
                )
            metric.require_classes(self.images.guidance.num_classes(self.images.module.labels))
            if metric.needs_reference and self.reference is None:
                raise ValueError(f"reference must be given for {type(metric).__name__}, got none.")

    def measure(self, metrics: Sequence[Metric], look: Look = lambda seeds, pixels: None) -> list[Number]:
        """All numbers of all metrics.  look: see `Look`.  Every process must ask at the same time.

        Raises ValueError where a set is too small, and for images that are not finite.
        """
        self.require(metrics)
        self._see_reference(metrics)
        samples = self._see_samples(metrics, look)
        with self._timed("statistics"):
            return list(self._numbers(metrics, samples))

    def draw(self, num_images: int, look: Look) -> None:
        """Shows the first images without measuring them.  Every process must ask at the same time."""
        ranks = Ranks.current()
        with ranks.raise_together():
            for seeds in ranks.shard(self.images.batches(range(self.seed, self.seed + num_images))):
                look(seeds, self.images.draw(seeds))

    def mean(self, metric: MeanOverImages, images: Images) -> Number:
        """A mean over the images of a data set, each with noise of its own."""
        module, device = self.images.module, self.images.module.device
        if module.space != Pixels():
            raise ValueError(f"metrics must be of sets of images for a network of latents, got {metric.name}.")
        metric = metric.to(device)
        denoiser = module.denoiser(weights=self.images.weights)
        whole, size = range(min(metric.num_images or len(images), len(images))), self.images.batch_size
        batches = Ranks.current().shard([whole[k : k + size] for k in range(0, len(whole), size)])
        self.seconds.setdefault("means over images", 0.0)
        reading = self.display(f"reading images of {metric.split}", sum(map(len, batches)))
        with self._timed("means over images"), reading as advance:
            for batch in batches:
                x_0 = images.gather(np.array(batch)).to(device).float() / 127.5 - 1
                label = images.label[np.array(batch)].to(device) if module.labels.num_classes else None
                noise = ImageNoise.of_images(self.seed, batch, x_0.shape[1:], device)
                metric.update(metric.quantity(denoiser, x_0, self.images.condition(x_0, label), noise))
                advance(len(batch))
        value = float(metric.compute())
        protocol = self.images.protocol()
        fingerprint = {
            "num_samples": metric.total,
            "metric": describe(metric.quantity, omit=("process",)),
            "reference": {"split": metric.split, "fingerprint": images.fingerprint, "size": len(images)},
            **{key: protocol[key] for key in ("schedule", "weights", "batch_size")},
            **self._circumstances(),
        }
        return Number(metric.name, value, fingerprint)

    def _see_reference(self, metrics: Sequence[Metric]) -> None:
        """Fills the features of the reference, once for all measurements."""
        for features, outputs in _wanted(metrics, of_reference=True).items():
            missing = {
                output: rows for output, rows in outputs.items() if (id(features), output) not in self._references
            }
            if not missing or self.reference is None:
                continue
            features.to(self.images.module.device)
            with self._timed("features"):
                found = self.reference.feature_sets(features, missing, self.display)
            self._references |= {(id(features), output): found[output] for output in missing}

    def _see_samples(self, metrics: Sequence[Metric], look: Look) -> FeatureSets:
        ranks, wanted = Ranks.current(), _wanted(metrics)
        rows: dict[tuple[int, str], list[Tensor]] = {
            (id(features), output): [] for features, outputs in wanted.items() for output in outputs
        }
        all_seeds = range(self.seed, self.seed + self.num_samples)
        batches, label = ranks.shard(self.images.batches(all_seeds)), self.images.labels(all_seeds)
        with ranks.raise_together(), self.display("sampling", sum(map(len, batches))) as advance:
            for seeds in batches:
                with self._timed("sampling"):
                    pixels = self.images.draw(seeds)
                    look(seeds, pixels)
                with self._timed("features"):
                    for features, outputs in wanted.items():
                        seen = features.to(pixels.device)(pixels)
                        for output in outputs:
                            rows[id(features), output].append(seen[output].cpu())
                advance(len(seeds))
        with self._timed("statistics"):
            return {key: replace(_together(parts, ranks), label=label) for key, parts in rows.items()}

    def _numbers(self, metrics: Sequence[Metric], samples: FeatureSets) -> Iterator[Number]:
        """Every process computes some metrics, none waits idly, and each number is what one process says, for all."""
        ranks = Ranks.current()
        mine: dict[int, dict[str, float]] = {}
        with ranks.raise_together():
            for j in filter(lambda j: self._is_mine(j, len(metrics)), range(len(metrics))):
                mine[j] = self._value(metrics[j], samples)
        said = ranks.all_gather_object(mine)
        for j, metric in enumerate(metrics):
            found = next(values[j] for values in said if j in values)
            reference = self.reference.name if metric.needs_reference and self.reference is not None else None
            for kind, value in found.items():
                name = full_name(kind, metric.features.name, self.num_samples, reference)
                yield Number(name, value, self.fingerprint(metric))

    def _is_mine(self, j: int, num_metrics: int) -> bool:
        ranks = Ranks.current()
        turns = min(ranks.world_size, num_metrics)
        return j % turns == ranks.rank % turns

    def _value(self, metric: Metric, samples: FeatureSets) -> dict[str, float]:
        key = (id(metric.features), metric.output)
        return metric.measure(samples[key], self._references.get(key, samples[key]))

    def fingerprint(self, metric: Metric) -> dict[str, Any]:
        """All that must be the same for two numbers of this metric to be comparable."""
        features = metric.features
        return {
            "num_samples": self.num_samples,
            "metric": describe(metric, omit=("features",)),
            "features": {key: getattr(features, key) for key in ("name", "weights_sha256", "resize")}
            | {"output": metric.output},
            "reference": self.reference.protocol() if metric.needs_reference and self.reference else None,
            **self.images.protocol(),
            **self._circumstances(),
        }

    def _circumstances(self) -> dict[str, Any]:
        return {"seed": self.seed, "precision": self.precision, "version": VERSION}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.images.module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - started


def _wanted(metrics: Sequence[Metric], of_reference: bool = False) -> dict[Features, dict[str, bool]]:
    """For each network of features, the outputs that metrics see, and whether one of them needs single images."""
    wanted: dict[Features, dict[str, bool]] = {}
    for metric in metrics:
        if metric.needs_reference or not of_reference:
            outputs = wanted.setdefault(metric.features, {})
            outputs[metric.output] = outputs.get(metric.output, False) or metric.needs_rows
    return wanted


def _together(parts: list[Tensor], ranks: Ranks) -> FeatureSet:
    """The features of all ranks' images, in the order of the seeds."""
    widths = ranks.all_gather_object(max((part.shape[1] for part in parts), default=0))
    rows = ranks.all_gather(torch.cat([*parts, torch.zeros(0, max(widths))]))
    return FeatureSet.of(rows) if len(rows) > 1 else FeatureSet(len(rows), rows.sum(0).double(), rows.T @ rows, rows)
