"""Guidance: denoisers that wrap a denoiser."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.guidance.strength import Guidable, Strength
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Away from what the network answers without a label (Ho & Salimans 2022, eq. 6)."""

    of: Guidable
    null_label: int
    strength: Strength

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        is_active = self.strength.is_active(self.of.process, t)
        if not bool(is_active.any()):
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
        guided = self.strength.extrapolate(strong, weak, x_t, t, self.of)
        return Estimate(_where(is_active, guided, strong), variance_output)


@dataclass(frozen=True)
class Autoguidance:
    """Away from what a weaker network answers to the same question (Karras et al. 2024, "bad version of itself")."""

    of: Guidable
    guide: DenoiserLike
    strength: Strength

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        strong, is_active = self.of.denoiser(x_t, t, condition), self.strength.is_active(self.of.process, t)
        if not bool(is_active.any()):
            return strong
        guided = self.strength.extrapolate(strong.x_0, self.guide(x_t, t, condition).x_0, x_t, t, self.of)
        return replace(strong, x_0=_where(is_active, guided, strong.x_0))


def _where(is_active: Tensor, guided: Tensor, plain: Tensor) -> Tensor:
    return (
        guided if bool(is_active.all()) else torch.where(GaussianProcess.widen(is_active, guided).bool(), guided, plain)
    )
