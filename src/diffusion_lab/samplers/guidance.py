"""Guidance: denoisers that wrap a denoiser."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.networks import Condition


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Away from what the network answers without a label (Ho & Salimans 2022, eq. 6).

    estimate = unconditional + guidance_scale * (conditional - unconditional), so that 1 is plainly conditional and 0
    unconditional; the paper's w is guidance_scale - 1. It is the same in x_0 as in noise: both are linear in x_0.
    """

    denoiser: DenoiserLike
    null_label: int
    guidance_scale: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        if self.guidance_scale == 1:
            return self.denoiser(x_t, t, condition)
        if condition.label is None:
            raise ValueError("label must be given where guidance_scale is not 1, got None.")
        without = replace(condition, label=torch.full_like(condition.label, self.null_label))
        # One pass over both halves: the same arithmetic at half the number of calls.
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), Condition.cat(condition, without))
        conditional, unconditional = both.x_0.chunk(2)
        # The reverse variance is that of the network as it was trained, with the label.
        variance_output = None if both.variance_output is None else both.variance_output.chunk(2)[0]
        return Estimate(torch.lerp(unconditional, conditional, self.guidance_scale), variance_output)
