"""Evaluation of a sequence of frames."""

import torch

from diffusion_lab.evaluation.number import Number
from diffusion_lab.fingerprints import VERSION
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.metrics import Smoothness


def measure_smoothness(images: FrameImages, metric: Smoothness, precision: str) -> list[Number]:
    """Return the mean distance between neighboring frames, and the ratio of the largest distance to the mean.

    images: frames, whose batches are cached.  precision: see `Evaluator`.
    """
    frames = torch.cat([images.generate(batch) for batch in images.batches(range(images.num_images))])
    metric.features.to(images.device)
    distances = metric.distances(frames, is_closed=images.sequence.is_closed)
    mean = float(distances.mean())
    ratio = float(distances.max()) / mean if mean else 1.0
    name = f"{metric.features.name}_{images.sequence.name}_{images.num_images}"
    fingerprint = {
        "num_samples": images.num_images,
        "metric": {"name": type(metric).__name__},
        **metric.protocol(),
        **images.protocol(),
        "precision": precision,
        "version": VERSION,
    }
    return [
        Number(f"frame_distance_{name}", mean, fingerprint, "mean distance between the features of neighboring frames"),
        Number(f"frame_distance_ratio_{name}", ratio, fingerprint, "largest distance divided by the mean"),
    ]
