"""Perceptual distances between the results of an edit and their source."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.features import Features
from diffusion_lab.features.weights import verify_sha256
from diffusion_lab.inverse_problems import Measurement
from diffusion_lab.metrics.edit_metric import EditMetric
from diffusion_lab.pixels import from_uint8

logger = logging.getLogger(__name__)

ALEXNET = "alexnet-owt-7be5be79.pth"
"""File of torchvision's AlexNet in torch's folder for downloaded weights."""

MIN_SIDE = 32
"""Smallest side in pixels of an image from which AlexNet computes all features."""


@dataclass(frozen=True)
class FeatureDistance(EditMetric):
    """Euclidean distance between the pooled features of a result and those of its source.

    features: feature network.
    """

    features: Features

    choice: ClassVar[str] = "lpips"
    meaning: ClassVar[str] = "distance between the features of a result and its source"
    needs_source: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        return f"feature_distance_{self.features.name}"

    def protocol(self) -> dict[str, Any]:
        names = ("name", "weights_sha256", "resize")
        return {"features": {name: getattr(self.features, name) for name in names} | {"output": "pooled"}}

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        features = self.features(torch.cat([source, results]))["pooled"].double().flatten(1)
        return float((features[1:] - features[:1]).norm(dim=1).mean())


@dataclass(frozen=True)
class LPIPS(EditMetric):
    """LPIPS to the source with the features of AlexNet (Zhang et al. 2018).

    If the weights of AlexNet are not on the disk, or if the images are too small for it, `FeatureDistance` is measured
    instead, whose values have another name.
    features: feature network of this distance.
    """

    features: Features

    choice: ClassVar[str] = "lpips"
    meaning: ClassVar[str] = "LPIPS to the source, with AlexNet"
    needs_source: ClassVar[bool] = True

    @property
    def file(self) -> Path:
        """Path of the AlexNet weights, which may not exist."""
        return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET

    def for_images(self, shape: tuple[int, int, int]) -> EditMetric:
        is_large = min(shape[1:]) >= MIN_SIDE
        if is_large and self.file.is_file():
            return self
        other = FeatureDistance(self.features)
        missing = f"the weights {self.file}" if is_large else f"images of at least {MIN_SIDE} x {MIN_SIDE} pixels"
        if Ranks.current().rank == 0:
            logger.warning("lpips requires %s, so %s is measured instead (%s).", missing, other.kind, other.meaning)
        return other

    def protocol(self) -> dict[str, Any]:
        return {"features": {"name": "alexnet", "weights_sha256": verify_sha256(self.file)}}

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        images = from_uint8(results).expand(-1, 3, -1, -1)
        return float(self._lpips(images, from_uint8(source).expand_as(images)))

    @cached_property
    def _lpips(self) -> Callable[[Tensor, Tensor], Tensor]:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        network: Callable[[Tensor, Tensor], Tensor] = LearnedPerceptualImagePatchSimilarity(net_type="alex")
        return network
