"""Base classes of posterior samplers."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.operators import SpectralOperator
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import FixedStepSampler, Noise, OnStep, Sampler, StepContext
from diffusion_lab.samplers.base import noise_sources
from diffusion_lab.samplers.step_results import require_step, require_steps


class PosteriorSampler(DataclassInterface):
    """A method that samples images given their measurements, with a sampler and a denoiser of the images.

    Each posterior sampler is a frozen dataclass.
    name: name of the method in error messages, which is its choice of the setting `posterior`.
    """

    name: ClassVar[str]

    @property
    def num_gradients(self) -> int:
        """Number of gradients of the denoiser that an evaluation takes in addition."""
        return 0

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        """Raise UserError if the method does not take the sampler, the operator, or measurements of latents."""

    @abstractmethod
    def sample(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return one sample [B, C, H, W] of the posterior of each image given its measurement.

        denoiser: denoiser of images, with guidance if samples are guided.
        noise, condition, on_step: see `Sampler.sample`. `on_step` is called `num_steps` times.
        Raises UserError as `require`, before the denoiser is evaluated.
        """

    def num_steps(self, sampler: Sampler) -> int:
        """Return the number of steps, which is the number of calls of on_step."""
        return len(sampler.times)

    def num_evaluations(self, sampler: Sampler) -> int:
        """Return the number of evaluations of the denoiser, without their gradients."""
        return sampler.num_evaluations


class ConditionalPosterior(PosteriorSampler):
    """A posterior sampler that replaces the estimate of x_0 at x_t by an estimate given y; it takes every sampler."""

    @abstractmethod
    def estimate(
        self,
        denoiser: DenoiserLike,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        measurement: Measurement,
        process: GaussianProcess,
    ) -> Estimate:
        """Return the estimate of x_0 given x_t [B, C, H, W] at t [B] and the measurement.

        process: process of the sampler, for coefficients at t.
        """

    def denoiser(
        self, denoiser: DenoiserLike, measurement: Measurement, process: GaussianProcess
    ) -> "ConditionalDenoiser":
        """Return the denoiser given the measurement, which samplers take as any other denoiser."""
        return ConditionalDenoiser(self, denoiser, measurement, process)

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
        sampler.estimator(denoiser, condition)  # raises for a denoiser of another process
        return sampler.sample(self.denoiser(denoiser, measurement, sampler.process), noise, condition, on_step)


@dataclass(frozen=True)
class ConditionalDenoiser:
    """A denoiser of images given a measurement.

    posterior: method that estimates x_0.  denoiser: denoiser without the measurement.
    process: process of the sampler.
    """

    posterior: ConditionalPosterior
    unconditional: DenoiserLike
    measurement: Measurement
    process: GaussianProcess

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return self.posterior.estimate(self.unconditional, x_t, t, condition, self.measurement, self.process)

    def select(self, rows: Tensor) -> "ConditionalDenoiser":
        """Return the denoiser for a part of the batch.  rows: indices of the images, int64 [b]."""
        return replace(self, measurement=self.measurement.select(rows))


class Steps:
    """The steps of a sampler, executed one at a time, for methods that change x_t between the steps.

    State number k, for k = 0..N, is x_t after k of the N steps. Its time is that of step k, and 0 for k = N.
    """

    def __init__(
        self,
        sampler: FixedStepSampler,
        denoiser: DenoiserLike,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None,
    ) -> None:
        """Raise ValueError for a denoiser of another process.  denoiser, noise, condition: see `Sampler.sample`."""
        self.initial_noise, self.noise = noise_sources(noise)
        self.sampler, self.process = sampler, sampler.process
        self._context = StepContext(sampler.estimator(denoiser, condition), self.noise)
        starts, ends = sampler.intervals()
        self.times = torch.cat([starts, ends[-1:]])
        """The time of each state, float64 [N + 1]."""
        alphas, sigmas = sampler.process.schedule.coefficients(self.times)
        self.alphas: list[float] = alphas.tolist()
        self.sigmas: list[float] = sigmas.tolist()
        self.scales: list[float] = torch.hypot(alphas, sigmas).tolist()
        self._step_times, table = require_steps(sampler, sampler.prepare_steps(starts, ends), len(starts))
        self._coefficients = table.tolist()

    def __len__(self) -> int:
        return len(self._coefficients)

    def start(self) -> Tensor:
        """Return state 0, pure noise: [B, C, H, W]."""
        return self.initial_noise.draw() * self.sampler.initial_std

    def step(self, x_t: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return state k + 1 and the estimate of x_0, [B, C, H, W] each.  x_t: state k."""
        result = self.sampler.step(x_t, self._step_times[k], self._coefficients[k], self._context)
        return require_step(self.sampler, result, x_t)

    def estimate(self, x_t: Tensor, k: int) -> Tensor:
        """Return the estimate of x_0 at state k, after clipping, [B, C, H, W].  x_t: state k."""
        return self._context.estimate(x_t, self.times[k]).x_0

    def jump_back(self, x_s: Tensor, k: int, target: int) -> Tensor:
        """Return a sample of state `target` < k given state k, by the forward process (Lugmayr et al. 2022, eq. 1)."""
        scale, variance = self.process.transition(self.times[k], self.times[target])
        self._context.previous = None  # the estimates of the previous steps belong to another trajectory
        return float(scale) * x_s + float(variance.sqrt()) * self.noise.draw()


def require_spectral(posterior: PosteriorSampler, measurement: Measurement) -> SpectralOperator:
    """Return the operator of a measurement.  Raises UserError unless its singular values are known."""
    operator = measurement.operator
    if measurement.decode is not None:
        raise UserError(
            f"`posterior` must be dps, pigdm or mmps for measurements of decoded latents, got {posterior.name}, which "
            "requires the singular values of the operator."
        )
    if not isinstance(operator, SpectralOperator):
        raise UserError(
            f"`posterior` must be dps, pigdm or mmps for an operator without known singular values, got "
            f"{posterior.name} for {type(operator).__name__}."
        )
    return operator


def require_sampler(
    posterior: PosteriorSampler, sampler: Sampler, accepted: tuple[type[Sampler], ...], case: str = ""
) -> None:
    """Raise UserError unless the sampler is one of the accepted samplers of a method.

    case: case in which the method takes these samplers only, such as "with measurement noise".
    """
    if not isinstance(sampler, accepted):
        raise UserError(
            f"`sampler` must be {' or '.join(kind.__name__ for kind in accepted)} for posterior={posterior.name}"
            f"{case and ' '}{case}, got {type(sampler).__name__}."
        )
