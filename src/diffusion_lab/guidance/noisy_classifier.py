"""A classifier of noisy images: the class that a gradient can lead samples to."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class NoisyClassifier:
    """log p(label | x_t) for every time of a process (Dhariwal & Nichol 2021, section 4).

    network: (image, time) -> logits [B, num_classes].
    """

    network: nn.Module
    process: GaussianProcess

    @property
    def num_classes(self) -> int:
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t: [B, C, H, W].  t: [B].  Returns [B, num_classes]."""
        process = self.process.continuous
        alpha_t, sigma_t = process.coefficients(t, like=x_t)
        # Of unit size on every schedule; it changes nothing where alpha^2 + sigma^2 is 1 already.
        scaled = x_t / torch.hypot(alpha_t, sigma_t)
        time = process.schedule.network_time(t).to(x_t.device, x_t.dtype, non_blocking=x_t.is_cuda)
        logits: Tensor = self.network(scaled, time)
        return logits.float()

    def gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Gradient of log p(label | x_t) after x_t, for each image: [B, C, H, W].  label: int64 [B]."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            chosen = self.logits(x_t, t).log_softmax(dim=1).gather(1, label[:, None]).sum()
            gradient: Tensor = torch.autograd.grad(chosen, x_t)[0]
        return gradient
