"""A classifier for noisy images, whose gradient guides samples to a class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.networks import ClassifierNetwork
from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class NoisyClassifier:
    """A model of log p(label | x_t) for all times of a process (Dhariwal & Nichol 2021, section 4).

    network: classifier that maps (noisy image, time) to logits [B, num_classes].
    process: forward process that adds the noise, or its noise schedule.
    trained_classes: classes that the network was trained on; empty if it was trained on all of them.

    >>> from diffusion_lab import CosineSchedule, GaussianProcess, HalfUNet, NoisyClassifier
    >>> network = HalfUNet(3, 10, resolution=16, channels=32, channel_multipliers=(1, 2), attention_resolutions=(8,))
    >>> classifier = NoisyClassifier(network, GaussianProcess(CosineSchedule()))
    >>> classifier.gradient(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 0.5]), label=torch.tensor([3, 7])).shape
    torch.Size([2, 3, 16, 16])
    """

    network: ClassifierNetwork
    process: GaussianProcess
    trained_classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, num_classes], float32.  x_t: [B, C, H, W].  t: [B]."""
        process = self.process.unbounded
        alpha_t, sigma_t = process.coefficients(t, like=x_t)
        # The input has unit scale for every schedule. If alpha^2 + sigma^2 = 1, the input is x_t.
        scaled = x_t / torch.hypot(alpha_t, sigma_t)
        time = process.schedule.network_time(t).to(x_t.device, x_t.dtype, non_blocking=x_t.is_cuda)
        logits: Tensor = self.network(scaled, time)
        return logits.float()

    def gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of log p(label | x_t) with respect to x_t, [B, C, H, W].

        label: int64 [B]. For weights of labels, float [B, at least num_classes], the logarithm is that of the weighted
            geometric mean of the probabilities of the classes.
        """
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            log_probabilities = self.logits(x_t, t).log_softmax(dim=1)
            if label.dim() == 1:
                chosen = log_probabilities.gather(1, label[:, None])
            else:
                chosen = log_probabilities * label[:, : self.num_classes]
            gradient: Tensor = torch.autograd.grad(chosen.sum(), x_t)[0]
        return gradient
