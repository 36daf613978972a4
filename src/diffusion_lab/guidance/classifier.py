"""Classifier guidance."""

from dataclasses import dataclass, replace

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate, require_estimate
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.guidance.strength import require_same_process
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class ClassifierGuidance:
    """Guidance towards the label by a classifier for noisy images (Dhariwal & Nichol 2021, section 4).

    denoiser: denoiser to guide.  classifier: classifier for noisy images of the same process.
    classifier_scale: factor of the gradient, the paper's s.
    labels: classes that the denoising network is conditioned on. A network without classes does not receive the label.
    Calls raise ValueError if the condition has no label.
    """

    denoiser: DenoiserLike
    classifier: NoisyClassifier
    classifier_scale: float
    labels: Labels

    def __post_init__(self) -> None:
        require_same_process("classifier", self.classifier, self.denoiser)

    @property
    def process(self) -> GaussianProcess:
        """The process of the classifier and of the guided denoiser."""
        return self.classifier.process

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        if condition.label is None:
            raise ValueError("`label` must be given for classifier guidance, got None.")
        denoiser_condition = condition if self.labels.num_classes else replace(condition, label=None)
        estimate = require_estimate(self.denoiser(x_t, t, denoiser_condition), self.denoiser)
        gradient = self.classifier.gradient(x_t, t, condition.label)
        return replace(estimate, gradient=self.classifier_scale * gradient)
