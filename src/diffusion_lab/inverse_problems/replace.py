"""Replacement of the measured part of x_t."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measured_spectrum import MeasuredSpectrum
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import PosteriorSampler, Steps, require_spectral
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import FixedStepSampler, Noise, OnStep, Sampler, UniPC


@dataclass(frozen=True)
class Replace(PosteriorSampler):
    """After each step, the measured part of x_s is replaced by a noisy version of y (Song et al. 2021, appendix I.2).

    The samples are biased, because the other part of x_s is not resampled given the replaced part. For an operator A =
    U S V^T, the replaced part consists of the coefficients of V^T x_s with a singular value above 0; for inpainting, of
    the known pixels. Coefficients whose measurement is noisier than x_s are not replaced any more.
    The method takes every sampler but RK45 and UniPC, which continue from states of earlier steps, and every operator
    with known singular values.

    >>> from diffusion_lab import DDIM, Estimate, ImageNoise, Inpainting, Measurement, Replace, VPSchedule
    >>> hole = torch.tensor([[False, True], [False, True]])
    >>> measurement = Measurement.of(Inpainting((1, 2, 2), hole), torch.full((1, 1, 2, 2), 0.7))
    >>> def gray(x_t, t, condition):
    ...     return Estimate(x_0=torch.zeros_like(x_t))
    >>> Replace().sample(DDIM(VPSchedule(), num_steps=10), gray, measurement, ImageNoise(1, (1, 2, 2)))
    tensor([[[[0.7000, 0.0000],
              [0.7000, 0.0000]]]])
    """

    name: ClassVar[str] = "replace"

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        require_single_states(self, sampler)
        require_spectral(self, measurement)

    def sample(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        self.require(sampler, measurement)
        assert isinstance(sampler, FixedStepSampler)
        steps = Steps(sampler, denoiser, noise, condition)
        return sample_along(range(len(steps) + 1), steps, measurement, on_step)


@torch.no_grad()
def sample_along(states: Sequence[int], steps: Steps, measurement: Measurement, on_step: OnStep | None) -> Tensor:
    """Return the images at the end of a sequence of states, with the measured part replaced in each state.

    states: numbers of the states from 0 to N, see `Steps`. The next state is k + 1, which is a step, or below k, which
        is a jump back.
    """
    x_t, num_done = steps.start(), 0
    measured = MeasuredSpectrum.of(measurement, require_spectral(Replace(), measurement), like=x_t)
    x_t = measured.insert(x_t, x_t / steps.sampler.initial_std, steps.alphas[0], steps.sigmas[0])
    for k, following in pairwise(states):
        if following < k:
            x_t = steps.jump_back(x_t, k, following)
            continue
        x_s, x_0 = steps.step(x_t, k)
        noise = steps.noise.draw() if steps.sigmas[following] > 0 else torch.zeros_like(x_s)
        x_t = measured.insert(x_s, noise, steps.alphas[following], steps.sigmas[following])
        num_done += 1
        if on_step is not None:
            on_step(num_done, x_t, x_0)
    return x_t


def require_single_states(posterior: PosteriorSampler, sampler: Sampler) -> None:
    """Raise UserError for a sampler whose steps continue from other states than the one that was replaced last."""
    if not isinstance(sampler, FixedStepSampler) or isinstance(sampler, UniPC):
        raise UserError(
            f"`sampler` must be a sampler with fixed steps other than unipc for posterior={posterior.name}, whose "
            f"steps change x_t, got {type(sampler).__name__}."
        )
