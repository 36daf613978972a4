"""Classifier-free guidance, autoguidance and classifier guidance combined in one object."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from diffusion_lab.contracts import require_instance
from diffusion_lab.denoiser import Denoiser, DenoiserLike
from diffusion_lab.guidance.classifier import ClassifierGuidance
from diffusion_lab.guidance.classifier_free import Autoguidance, ClassifierFreeGuidance
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.guidance.strength import Guidable, Strength, require_same_process
from diffusion_lab.networks import Labels, Network, require_network


@dataclass(frozen=True)
class Guidance:
    """Guidance of samples towards their class; without arguments, samples are not guided.

    strength: strength of autoguidance if there is a guide, and of classifier-free guidance if there is none, or its
        guidance scale.
    guide: a weaker denoiser of the same process, or its `DiffusionModule`.
    classifier: a classifier for noisy images of the same process, or its `ClassifierModule`.
    classifier_scale: factor of the gradient of the classifier.

    Raises ValueError for a guide with guidance_scale=1, and unless classifier_scale is finite and at least 0. A
    `DiffusionModule` applies guidance with `module.sample(seeds, guidance=guidance)`.

    >>> from diffusion_lab import Guidance, Labels, Strength
    >>> guidance = Guidance(Strength(2.0))  # classifier-free guidance
    >>> guidance.num_classes(Labels(10, dropout=0.1))
    10
    """

    strength: Strength = field(default_factory=Strength)
    guide: Denoiser | None = None
    classifier: NoisyClassifier | None = None
    classifier_scale: float = 1.0

    def __post_init__(self) -> None:
        guide, classifier = cast(Any, self.guide), cast(Any, self.classifier)
        object.__setattr__(self, "strength", Strength.of(self.strength))
        object.__setattr__(self, "guide", guide.denoiser() if hasattr(guide, "denoiser") else guide)
        object.__setattr__(self, "classifier", getattr(classifier, "classifier", classifier))
        for name, kind in (("guide", Denoiser), ("classifier", NoisyClassifier)):
            if getattr(self, name) is not None:
                require_instance(getattr(self, name), kind, name)
        if self.guide is not None and self.strength.guidance_scale == 1:
            raise ValueError("guidance_scale must differ from 1 for the guide to have an effect, got 1.")
        if not (math.isfinite(self.classifier_scale) and self.classifier_scale >= 0):
            raise ValueError(f"classifier_scale must be a finite number of at least 0, got {self.classifier_scale}.")

    def to(self, device: torch.device) -> "Guidance":
        """Move the networks of the guide and of the classifier to a device, and return the guidance."""
        for model in (self.guide, self.classifier):
            if model is not None:
                cast(nn.Module, model.network).to(device)
        return self

    def num_classes(self, labels: Labels) -> int:
        """Return the number of classes of a guided denoiser.  labels: classes of the denoiser's network."""
        return self.classifier.num_classes if self.classifier is not None else labels.num_classes

    def trained_classes(self, labels: Labels, trained: Sequence[int]) -> Sequence[int]:
        """Return the classes that a guided denoiser can generate; empty if these are all classes.

        labels: classes of the denoiser's network.  trained: those that it was trained on; empty if these are all.
        """
        of_classifier = () if self.classifier is None else self.classifier.trained_classes
        if not labels.num_classes or not trained:
            return of_classifier
        return [label for label in trained if not of_classifier or label in of_classifier]

    def __call__(self, denoiser: Denoiser, labels: Labels) -> DenoiserLike:
        """Return the denoiser with guidance.  labels: classes of the denoiser's network.

        Raises ValueError if the guide, the classifier or num_channels of the strength does not match the network of the
        denoiser.
        """
        guided: DenoiserLike = denoiser
        if isinstance(denoiser.network, Network):
            self.strength.require_channels(denoiser.network.in_channels)
        if self.guide is not None:
            _require_same_data("guide", self.guide, denoiser)
            guide = _network_of(self.guide)
            _require_same_condition(guide, _network_of(denoiser))
            num_classes = guide.labels.num_classes
            if num_classes != labels.num_classes:
                raise ValueError(
                    f"`guide` must have the {labels.num_classes} classes of the network that it guides, got "
                    f"{num_classes}."
                )
            guided = Autoguidance(Guidable.from_denoiser(denoiser), self.guide, self.strength)
        elif self.strength.guidance_scale != 1:
            guided = ClassifierFreeGuidance(Guidable.from_denoiser(denoiser), labels.null, self.strength)
        if self.classifier is None:
            return guided
        _require_same_data("classifier", self.classifier, denoiser)
        if labels.num_classes not in (0, self.classifier.num_classes):
            raise ValueError(
                f"`classifier` must have the {labels.num_classes} classes of the network that it guides, got "
                f"{self.classifier.num_classes}."
            )
        return ClassifierGuidance(guided, self.classifier, self.classifier_scale, labels)


def _require_same_data(name: str, model: Denoiser | NoisyClassifier, denoiser: Denoiser) -> None:
    """Raise ValueError unless the guide or classifier `model` is trained on the noisy images of the denoiser."""
    require_same_process(name, model, denoiser)
    network = _network_of(model) if isinstance(model, Denoiser) else model.network
    expected = _network_of(denoiser)
    if (network.in_channels, network.resolution) != (expected.in_channels, expected.resolution):
        raise ValueError(
            f"`{name}` must be trained on images of {expected.in_channels} channels and resolution "
            f"{expected.resolution}, like the network that it guides, got {network.in_channels} channels and "
            f"resolution {network.resolution}."
        )


def _network_of(denoiser: Denoiser) -> Network:
    """Return the network of a denoiser.  Raises ValueError for a function, whose images and classes are not known."""
    require_network(denoiser.network, Network)
    return cast(Network, denoiser.network)


def _require_same_condition(guide: Network, network: Network) -> None:
    """Raise ValueError unless the guide takes the low-resolution images and augmentations of the guided network."""
    for name, found, expected in (
        ("condition_channels", guide.condition_channels, network.condition_channels),
        ("num_augmentation_channels", guide.num_augmentation_channels, network.num_augmentation_channels),
    ):
        if found != expected:
            raise ValueError(f"`guide` must have {name}={expected}, like the network that it guides, got {found}.")
