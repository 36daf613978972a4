"""Guidance: denoisers that wrap a denoiser."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.noisy_classifier import NoisyClassifier
from diffusion_lab.process import GaussianProcess, Prediction


@dataclass(frozen=True)
class Strength:
    """How far past an estimate guidance goes, away from a weaker one, and at which noise levels.

    guidance_scale: estimate = weak + guidance_scale * (strong - weak), so that 1 is the strong one as it is and 0 the
        weak one; the w of Ho & Salimans (2022), eq. 6, is guidance_scale - 1.
    interval: the noise levels sigma_t / alpha_t, above the first and up to the second, at which there is any guidance
        (Kynkäänniemi et al. 2024, eq. 5); None is all.
    rescale: share in which the network's answer gets back its deviation without guidance (Lin et al. 2024, eq. 15 and
        16, their phi); 0 is none.
    """

    guidance_scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {self.guidance_scale}.")
        if self.interval is not None and not (len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]):
            raise ValueError(f"interval must be two noise levels of at least 0, growing, got {list(self.interval)}.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}.")

    def acts(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Where guidance changes anything: bool [B].  t: [B]."""
        if self.guidance_scale == 1:
            return torch.zeros(len(t), dtype=torch.bool)
        if self.interval is None:
            return torch.ones(len(t), dtype=torch.bool)
        alpha_t, sigma_t = process.continuous.schedule.coefficients(t)
        level = sigma_t / alpha_t
        return (level > self.interval[0]) & (level <= self.interval[1])

    def past(self, strong: Tensor, weak: Tensor, x_t: Tensor, t: Tensor, denoiser: "Guidable") -> Tensor:
        """The guided estimate of x_0: [B, C, H, W], as strong and weak.  It is the same in x_0 as in noise."""
        guided = torch.lerp(weak, strong, self.guidance_scale)
        if not self.rescale:
            return guided
        around = denoiser.prediction.preconditioning(t, denoiser.process.continuous)
        answer, plain = around.output(guided, x_t), around.output(strong, x_t)
        deviation = answer.flatten(1).std(dim=1)  # [B]
        ratio = torch.where(deviation > 0, plain.flatten(1).std(dim=1) / deviation, 1.0)
        factor = self.rescale * ratio + (1 - self.rescale)
        return around.x_0(answer * GaussianProcess.widen(factor, answer), x_t)


@dataclass(frozen=True)
class Guidable:
    """A denoiser, and what its network's answers mean."""

    denoiser: DenoiserLike
    process: GaussianProcess
    prediction: Prediction

    @classmethod
    def of(cls, denoiser: Denoiser) -> "Guidable":
        return cls(denoiser, denoiser.process, denoiser.prediction)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Away from what the network answers without a label (Ho & Salimans 2022, eq. 6)."""

    of: Guidable
    null_label: int
    strength: Strength

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        acts = self.strength.acts(self.of.process, t)
        if not bool(acts.any()):
            return self.of.denoiser(x_t, t, condition)
        if condition.label is None:
            raise ValueError("label must be given where guidance_scale is not 1, got None.")
        without = replace(condition, label=torch.full_like(condition.label, self.null_label))
        # One pass over both halves: the same arithmetic at half the number of calls.
        twice = t[:1].expand(2 * len(t)) if t.stride() == (0,) else torch.cat([t, t])
        both = self.of.denoiser(torch.cat([x_t, x_t]), twice, Condition.cat(condition, without))
        strong, weak = both.x_0.chunk(2)
        # The reverse variance is that of the network as it was trained, with the label.
        variance_output = None if both.variance_output is None else both.variance_output.chunk(2)[0]
        guided = self.strength.past(strong, weak, x_t, t, self.of)
        return Estimate(_where(acts, guided, strong), variance_output)


@dataclass(frozen=True)
class Autoguidance:
    """Away from what a weaker network answers to the same question (Karras et al. 2024, "bad version of itself")."""

    of: Guidable
    guide: DenoiserLike
    strength: Strength

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        strong, acts = self.of.denoiser(x_t, t, condition), self.strength.acts(self.of.process, t)
        if not bool(acts.any()):
            return strong
        guided = self.strength.past(strong.x_0, self.guide(x_t, t, condition).x_0, x_t, t, self.of)
        return replace(strong, x_0=_where(acts, guided, strong.x_0))


@dataclass(frozen=True)
class ClassifierGuidance:
    """Towards what a classifier of noisy images takes for the label (Dhariwal & Nichol 2021, section 4).

    classifier_scale: of the gradient, the paper's s.  labels: that the denoiser's network knows, perhaps none.
    """

    denoiser: DenoiserLike
    classifier: NoisyClassifier
    classifier_scale: float
    labels: Labels

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        if condition.label is None:
            raise ValueError("label must be given where a classifier guides, got None.")
        told = condition if self.labels.num_classes else replace(condition, label=None)
        estimate = self.denoiser(x_t, t, told)
        gradient = self.classifier.gradient(x_t, t, condition.label)
        return replace(estimate, gradient=self.classifier_scale * gradient)


@dataclass(frozen=True)
class Guidance:
    """All that leads samples to their class.

    strength: of classifier-free guidance; or, with a guide, of autoguidance.
    guide: a weaker denoiser of the same process.
    classifier: of noisy images, of the same process.  classifier_scale: of its gradient.
    """

    strength: Strength = Strength()
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


def _where(acts: Tensor, guided: Tensor, plain: Tensor) -> Tensor:
    return guided if bool(acts.all()) else torch.where(GaussianProcess.widen(acts, guided).bool(), guided, plain)


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
