"""Evaluation of the results of an edit: a value of each source image, and the means over all sources."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.number import Number
from diffusion_lab.fingerprints import VERSION, describe
from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.metrics.edit_metric import EditMetric
from diffusion_lab.reporting.progress import Display, progress_bar


@dataclass
class EditEvaluator:
    """Evaluator of the results of an edit. Each rank measures the results of a part of the sources.

    images: results, whose batches are cached.  precision: see `Evaluator`.  display: progress display.
    seconds: seconds spent on "differences".
    """

    images: EditedImages
    precision: str
    display: Display = progress_bar
    seconds: dict[str, float] = field(default_factory=dict)

    def chosen(self, metrics: Sequence[EditMetric]) -> list[EditMetric]:
        """Return the metrics that `measure` computes for `metrics`, see `EditMetric.for_images`.

        Raises ValueError if a metric cannot be computed for the results. Call this before sampling.
        """
        task, num_results = self.images.task, self.images.num_results
        has_measurement = task.measurement(self.images.sources.batch([0], self.images.device)) is not None
        for metric in metrics:
            if metric.needs_source and task.hides_source:
                raise ValueError(
                    f"metrics must not contain {metric.choice} for mask=transparent, because the colors of transparent "
                    "pixels of the sources are unknown."
                )
            if num_results < metric.min_results:
                raise ValueError(
                    f"num_results must be at least {metric.min_results} for metrics={metric.choice}, got {num_results}."
                )
            if metric.needs_measurement and not has_measurement:
                raise ValueError(
                    f"metrics must not contain {metric.choice} for task={task.name}, which has no measurement of the "
                    "sources."
                )
        return [metric.for_images(self.images.shape) for metric in metrics]

    def measure(self, metrics: Sequence[EditMetric]) -> list[Number]:
        """Return the values of metrics from `chosen`. Collective: call on all ranks."""
        ranks, started = Ranks.current(), time.perf_counter()
        of_mean = [metric for metric in metrics if metric.needs_source and self.images.num_results > 1]
        numbers = ranks.shard(range(len(self.images.sources)))
        with ranks.raise_together(), self.display("measuring results", len(numbers)) as advance:
            rows = []
            for number in numbers:
                rows.append(self._values(number, metrics, of_mean))
                advance(1)
        values = np.array([row for part in ranks.all_gather_object(rows) for row in part], dtype=np.float64).mean(0)
        self.seconds["differences"] = time.perf_counter() - started
        named = [*((metric, False) for metric in metrics), *((metric, True) for metric in of_mean)]
        return [
            self._number(metric, float(value), of_mean=is_mean)
            for (metric, is_mean), value in zip(named, values, strict=True)
        ]

    def _values(self, source: int, metrics: Sequence[EditMetric], of_mean: Sequence[EditMetric]) -> list[float]:
        """Return the value of each metric for one source, and for the mean of its results."""
        results, pixels = self.images.results(source), self.images.sources.pixels([source]).to(self.images.device)
        sources = self.images.sources.batch([source] * len(results), self.images.device)
        measurement = self.images.task.measurement(sources)
        mean: Tensor = results.double().mean(dim=0, keepdim=True).round().byte()
        return [
            *(metric.measure(results, pixels, measurement) for metric in metrics),
            *(metric.measure(mean, pixels, None) for metric in of_mean),
        ]

    def _number(self, metric: EditMetric, value: float, *, of_mean: bool) -> Number:
        num_images = len(self.images.sources) if of_mean else self.images.num_images
        name = metric.full_name(num_images, self.images.sources.name, of_mean=of_mean)
        meaning = f"{metric.meaning}: mean of {self.images.num_results} results" if of_mean else metric.meaning
        return Number(name, value, self._fingerprint(metric, of_mean=of_mean), meaning, metric.higher_is_better)

    def _fingerprint(self, metric: EditMetric, *, of_mean: bool) -> dict[str, Any]:
        described = describe(metric, omit=("features",)) | ({"of_mean": True} if of_mean else {})
        return {
            "num_samples": self.images.num_images,
            "metric": described,
            **metric.protocol(),
            **self.images.protocol(),
            "precision": self.precision,
            "version": VERSION,
        }
