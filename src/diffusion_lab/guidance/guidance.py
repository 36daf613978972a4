"""All that guides samples, in one object."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from diffusion_lab.denoiser import Denoiser, DenoiserLike
from diffusion_lab.guidance.classifier import ClassifierGuidance
from diffusion_lab.guidance.classifier_free import Autoguidance, ClassifierFreeGuidance
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.guidance.strength import Guidable, Strength
from diffusion_lab.networks import Labels


@dataclass(frozen=True)
class Guidance:
    """All that leads samples to their class.

    strength: of classifier-free guidance; or, with a guide, of autoguidance.
    guide: a weaker denoiser of the same process.
    classifier: of noisy images, of the same process.  classifier_scale: of its gradient.
    """

    strength: Strength = field(default_factory=Strength)
    guide: Denoiser | None = None
    classifier: NoisyClassifier | None = None
    classifier_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.guide is not None and self.strength.guidance_scale == 1:
            raise ValueError("guidance_scale must be above 1 for the guide to have an effect, got 1.")
        if not (math.isfinite(self.classifier_scale) and self.classifier_scale >= 0):
            raise ValueError(f"classifier_scale must be a number of at least 0, got {self.classifier_scale}.")

    def to(self, device: torch.device) -> "Guidance":
        """Itself, its networks moved to a device."""
        for guiding in (self.guide, self.classifier):
            if guiding is not None:
                guiding.network.to(device)
        return self

    def num_classes(self, labels: Labels) -> int:
        """Of the labels that a guided denoiser is told."""
        return self.classifier.num_classes if self.classifier is not None else labels.num_classes

    def __call__(self, denoiser: Denoiser, labels: Labels) -> DenoiserLike:
        """The denoiser under guidance.  labels: that its network knows.

        Raises ValueError where its network, the guide and the classifier do not fit together.
        """
        guided: DenoiserLike = denoiser
        if self.guide is not None:
            _require_like("guide", self.guide, denoiser)
            _require_told_alike(self.guide.network, denoiser.network)
            known = getattr(self.guide.network, "labels", labels).num_classes
            if known != labels.num_classes:
                raise ValueError(f"guide must be told the same {labels.num_classes} classes, got one of {known}.")
            guided = Autoguidance(Guidable.of(denoiser), self.guide, self.strength)
        elif self.strength.guidance_scale != 1:
            guided = ClassifierFreeGuidance(Guidable.of(denoiser), labels.null, self.strength)
        if self.classifier is None:
            return guided
        _require_like("classifier", self.classifier, denoiser)
        if labels.num_classes not in (0, self.classifier.num_classes):
            raise ValueError(
                f"classifier must know the {labels.num_classes} classes of the network that it guides, got "
                f"{self.classifier.num_classes}."
            )
        return ClassifierGuidance(guided, self.classifier, self.classifier_scale, labels)


def _require_like(name: str, guiding: Denoiser | NoisyClassifier, denoiser: Denoiser) -> None:
    if guiding.process != denoiser.process:
        raise ValueError(
            f"{name} must be trained under the schedule of the network that it guides, {denoiser.process.schedule}, "
            f"got {guiding.process.schedule}."
        )
    mine, wanted = _image(guiding.network), _image(denoiser.network)
    if None not in (*mine, *wanted) and mine != wanted:
        raise ValueError(
            f"{name} must be trained on images of {wanted[0]} channels and side {wanted[1]}, as the network that it "
            f"guides, got {mine[0]} and {mine[1]}."
        )


def _require_told_alike(guide: nn.Module, network: nn.Module) -> None:
    for name in ("low_resolution_channels", "num_augmentation_channels"):
        mine, wanted = getattr(guide, name, 0), getattr(network, name, 0)
        if mine != wanted:
            raise ValueError(f"guide must have {name}={wanted}, as the network that it guides, got {mine}.")


def _image(network: nn.Module) -> tuple[int | None, int | None]:
    """Channels and side of what a network sees, where it says so."""
    return getattr(network, "in_channels", None), getattr(network, "resolution", None)
