"""Images -> metric values: all metrics share one pass over the images and one pass of feature extraction."""

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
from diffusion_lab.evaluation.batch_progress import BatchProgress
from diffusion_lab.evaluation.likelihood import VariationalBound
from diffusion_lab.evaluation.number import Number
from diffusion_lab.evaluation.reference import ImageReference, Reference
from diffusion_lab.evaluation.training_reference import TrainingReference
from diffusion_lab.features import Features
from diffusion_lab.fingerprints import VERSION, describe
from diffusion_lab.generation.indexed_images import IndexedImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.latents import Pixels
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.metrics.metric import Metric, NearPair, full_name
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.reporting.progress import Display, progress_bar

OnBatch = Callable[[range, Tensor], None]
"""Function that receives the seeds and images, uint8 [B, C, H, W], of each batch of this rank."""

FeatureSets = dict[tuple[int, str], FeatureSet]
"""Feature sets by the id() of the feature network and the name of its output."""

RequiredOutputs = dict[Features, dict[str, bool]]
"""Names of outputs by feature network, each with whether the features of single images are needed."""

ReferenceFeatures = dict[bool, FeatureSets]
"""Feature sets of a reference: of the training and held-out images (True), or of the reference of most metrics."""


@dataclass
class Evaluator:
    """Evaluator of num_samples images with the indices seed, seed + 1, ..., which are the seeds of generated images.

    Each rank obtains a part of the images and computes a part of the metrics; all ranks receive all values.

    images: generator of the images, or stored images.
    reference: set that metrics compare the samples with; None if no metric needs a reference.
    training: training images and held-out images; None if no metric needs held-out images.
    precision: precision in which the images are sampled, as in Lightning; only stored in fingerprints. None for stored
        images, whose fingerprints contain no seed either.
    display: progress display.
    seconds: seconds spent on "sampling" (or "reading" of stored images), "features" and "statistics", and on "means
        over images" if `mean` was called.
    reference_features: features of the references that are known. Evaluators with the same feature networks share them.
    near_pairs: pairs of samples and training images to show, after `measure`.
    """

    images: IndexedImages
    reference: Reference | None
    num_samples: int
    seed: int = 0
    training: TrainingReference | None = None
    precision: str | None = "32-true"
    display: Display = progress_bar
    seconds: dict[str, float] = field(default_factory=dict)
    reference_features: ReferenceFeatures = field(default_factory=dict)
    near_pairs: tuple[NearPair, ...] = ()

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        self.seconds |= dict.fromkeys((self.images.action, "features", "statistics"), 0.0)

    def require(self, metrics: Sequence[Metric]) -> None:
        """Raise ValueError if a metric cannot be computed from the samples. Call this before sampling."""
        for metric in metrics:
            if self.num_samples < metric.min_images:
                raise ValueError(
                    f"num_samples must be at least {metric.min_images} for {metric.title}, got {self.num_samples}."
                )
            self._note_caution(metric)
            metric.require_classes(self.images.num_classes)
            if metric.needs_reference and self.reference is None:
                raise ValueError(f"`reference` must be given for {metric.title}, got None.")
            if metric.needs_held_out:
                if self.training is None:
                    raise ValueError(f"`training` must be given for {metric.title}, got None.")
                self.training.require(metric)

    def _note_caution(self, metric: Metric) -> None:
        """Log once if the sets are too small for a meaningful or unbiased value."""
        reference = self._reference_of(metric)
        images = reference.held_out if isinstance(reference, TrainingReference) else reference
        size = len(images.images) if isinstance(images, ImageReference) else None
        metric.note_caution(self.num_samples, size)

    def measure(self, metrics: Sequence[Metric], on_batch: OnBatch = lambda seeds, pixels: None) -> list[Number]:
        """Return all values of all metrics. Collective: call on all ranks.

        on_batch: function that receives each generated batch; see `OnBatch`.
        Raises ValueError if a set is too small or if images are not finite.
        """
        self.require(metrics)
        self._extract_reference_features(metrics)
        samples = self._extract_sample_features(metrics, on_batch)
        with self._timed("statistics"):
            return list(self._numbers(metrics, samples))

    def generate(self, num_images: int, on_batch: OnBatch) -> None:
        """Generate the first num_images images without measuring them. Collective: call on all ranks."""
        ranks = Ranks.current()
        with ranks.raise_together():
            for seeds in ranks.shard(self.images.batches(range(self.seed, self.seed + num_images))):
                on_batch(seeds, self.images.pixels(seeds))

    def mean(self, metric: MeanOverImages, images: Images) -> Number:
        """Return the mean of a quantity over the images of a data set. Each image has its own noise generator."""
        assert isinstance(self.images, SeededImages), "a mean over images of a data set needs a network"
        module, device = self.images.module, self.images.device
        if module.space != Pixels():
            raise ValueError(
                "`metrics` must not contain bound, nll, flow or reconstruction (which are computed from pixels) for a "
                f"latent diffusion model, got {metric.choice}."
            )
        metric = metric.to(device)
        denoiser = module.denoiser(weights=self.images.weights)
        indices, size = range(min(metric.num_images or len(images), len(images))), self.images.batch_size
        batches = Ranks.current().shard([indices[k : k + size] for k in range(0, len(indices), size)])
        self.seconds.setdefault("means over images", 0.0)
        progress = self.display(f"measuring images of {metric.split}", sum(map(len, batches)))
        with self._timed("means over images"), progress as advance:
            for batch in batches:
                x_0 = from_uint8(images.gather(np.array(batch)).to(device))
                label = images.label[np.array(batch)].to(device) if module.labels.num_classes else None
                noise = ImageNoise.of_images(self.seed, batch, x_0.shape[1:], device)
                paired = None if images.condition is None else images.condition.gather(np.array(batch))
                paired = None if paired is None else from_uint8(paired.to(device))
                condition = self.images.condition(x_0, label, paired, batch)
                batch_progress = BatchProgress(len(batch), getattr(metric.quantity, "num_evaluations", None), advance)
                metric.update(metric.quantity(batch_progress.counts(denoiser), x_0, condition, noise))
                batch_progress.finish()
        value = float(metric.compute())
        protocol = self.images.protocol()
        fingerprint: dict[str, Any] = {
            "num_samples": metric.total,
            "metric": describe(metric.quantity, omit=("process",)),
            "reference": {"split": metric.split, "fingerprint": images.fingerprint, "size": len(images)},
            **{key: protocol[key] for key in ("schedule", "weights", "batch_size", "condition") if key in protocol},
            **({"conventions": added} if (added := module.conventions(_unused(metric.quantity))) else {}),
            **self._settings_protocol(),
        }
        meaning = getattr(metric.quantity, "meaning", "")
        return Number(metric.name, value, fingerprint, meaning, bool(metric.higher_is_better))

    def _extract_reference_features(self, metrics: Sequence[Metric]) -> None:
        """Extract the features of the reference, unless an earlier measurement extracted them."""
        self._extract_missing(self.reference, False, required_outputs(metrics, of_reference=True))
        needing = [metric for metric in metrics if metric.needs_held_out]
        self._extract_missing(self.training, True, required_outputs(needing))

    def _extract_missing(
        self, reference: Reference | TrainingReference | None, is_training: bool, required: RequiredOutputs
    ) -> None:
        known = self.reference_features.setdefault(is_training, {})
        for features, outputs in required.items():
            missing = {output: rows for output, rows in outputs.items() if (id(features), output) not in known}
            if not missing or reference is None:
                continue
            features.to(self.images.device)
            with self._timed("features"):
                found = reference.feature_sets(features, missing, self.display)
            known |= {(id(features), output): found[output] for output in missing}

    def _extract_sample_features(self, metrics: Sequence[Metric], on_batch: OnBatch) -> FeatureSets:
        """Obtain the images of this rank, extract their features, and gather the features of all ranks."""
        ranks, required = Ranks.current(), required_outputs(metrics)
        rows: dict[tuple[int, str], list[Tensor]] = {
            (id(features), output): [] for features, outputs in required.items() for output in outputs
        }
        all_seeds = range(self.seed, self.seed + self.num_samples)
        batches, label = ranks.shard(self.images.batches(all_seeds)), self.images.labels(all_seeds)
        with ranks.raise_together(), self.display(self.images.action, sum(map(len, batches))) as advance:
            for seeds in batches:
                with self._timed(self.images.action):
                    pixels = self.images.pixels(seeds)
                    on_batch(seeds, pixels)
                with self._timed("features"):
                    for features, outputs in required.items():
                        extracted = features.to(pixels.device)(pixels)
                        for output in outputs:
                            rows[id(features), output].append(extracted[output].cpu())
                advance(len(seeds))
        with self._timed("statistics"):
            return {key: replace(_gather_features(parts, ranks), label=label) for key, parts in rows.items()}

    def _numbers(self, metrics: Sequence[Metric], samples: FeatureSets) -> Iterator[Number]:
        """Divide the metrics among the ranks, and yield the values of all metrics, in order, on all ranks."""
        ranks = Ranks.current()
        own_values: dict[int, tuple[dict[str, float], tuple[NearPair, ...]]] = {}
        with ranks.raise_together():
            for j in filter(lambda j: self._computes(j, len(metrics)), range(len(metrics))):
                own_values[j] = self._values(metrics[j], samples)
        gathered = ranks.all_gather_object(own_values)
        for j, metric in enumerate(metrics):
            values, pairs = next(values_of_rank[j] for values_of_rank in gathered if j in values_of_rank)
            self.near_pairs = pairs or self.near_pairs
            reference = self._reference_of(metric)
            for kind, value in values.items():
                name = full_name(kind, metric.features.name, self.num_samples, reference.name if reference else None)
                is_std = kind.endswith("_std")
                meaning = metric.meanings.get(kind, metric.meaning)
                meaning += ": standard deviation over random subsets" if is_std and kind not in metric.meanings else ""
                yield Number(name, value, self.fingerprint(metric), meaning, metric.direction(kind))

    def _computes(self, j: int, num_metrics: int) -> bool:
        """Return whether this rank computes the metric with index j."""
        ranks = Ranks.current()
        num_groups = min(ranks.world_size, num_metrics)
        return j % num_groups == ranks.rank % num_groups

    def _values(self, metric: Metric, samples: FeatureSets) -> tuple[dict[str, float], tuple[NearPair, ...]]:
        key = (id(metric.features), metric.output)
        reference = self.reference_features[metric.needs_held_out].get(key, samples[key])
        return metric.measure_with_pairs(samples[key], reference)

    def _reference_of(self, metric: Metric) -> Reference | TrainingReference | None:
        if metric.needs_held_out:
            return self.training
        return self.reference if metric.needs_reference else None

    def fingerprint(self, metric: Metric) -> dict[str, Any]:
        """Return all settings that must be equal for two values of this metric to be comparable."""
        features = metric.features
        source = self._reference_of(metric)
        reference = None if source is None else source.protocol()
        num_reference = reference.get("held_out", reference)["rows"] if reference else self.num_samples
        return {
            "num_samples": self.num_samples,
            "metric": describe(metric.for_sizes(self.num_samples, num_reference), omit=("features",)),
            "features": {key: getattr(features, key) for key in ("name", "weights_sha256", "resize")}
            | {"output": metric.output},
            "reference": reference,
            **self.images.protocol(),
            **self._settings_protocol(),
        }

    def _settings_protocol(self) -> dict[str, Any]:
        generation = {} if self.precision is None else {"seed": self.seed, "precision": self.precision}
        return generation | {"version": VERSION}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.images.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - started


def required_outputs(metrics: Sequence[Metric], of_reference: bool = False) -> RequiredOutputs:
    """Return the outputs of each feature network that `metrics` use.

    of_reference: whether to consider only metrics that need a reference.
    Returns, for each feature network, a dict from the name of an output to whether any metric that uses this output
    needs the features of single images.
    """
    required: RequiredOutputs = {}
    for metric in metrics:
        if metric.needs_reference or not of_reference:
            outputs = required.setdefault(metric.features, {})
            outputs[metric.output] = outputs.get(metric.output, False) or metric.needs_rows
    return required


def _gather_features(parts: list[Tensor], ranks: Ranks) -> FeatureSet:
    """Gather the features of the images of all ranks in seed order.  parts: features of each batch of this rank."""
    widths = ranks.all_gather_object(max((part.shape[1] for part in parts), default=0))
    rows = ranks.all_gather(torch.cat([*parts, torch.zeros(0, max(widths))]))
    return FeatureSet.of(rows) if len(rows) > 1 else FeatureSet(len(rows), rows.sum(0).double(), rows.T @ rows, rows)


def _unused(quantity: Any) -> tuple[str, ...]:
    """Return the names of the conventions that do not affect a mean over images.  Only the bound has a clipped mean."""
    return () if isinstance(quantity, VariationalBound) else ("clip_mean",)
