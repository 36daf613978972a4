"""Classifier guidance."""

from dataclasses import dataclass, replace

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.networks import Condition, Labels


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
