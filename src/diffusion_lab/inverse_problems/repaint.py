"""RePaint: replacement of the measured part of x_t, with jumps back in time."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import PosteriorSampler, Steps, require_spectral
from diffusion_lab.inverse_problems.replace import require_single_states, sample_along
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import FixedStepSampler, Noise, OnStep, Sampler


@dataclass(frozen=True)
class RePaint(PosteriorSampler):
    """`Replace` with jumps of jump_length steps back in time, which harmonize both parts (Lugmayr et al. 2022).

    A jump adds noise to x_s by the forward process; then its steps are repeated. There are jumps from every
    jump_length-th state, counted from the last one with noise, num_resamples - 1 from each (ibid., appendix B).
    The method takes the samplers and operators of `Replace`, and measurements without noise: where x_s has less noise
    than y, jumps would remove what x_s has learned from y. The paper has inpainting, and ancestral sampling with 250
    steps.
    jump_length: number of steps that are repeated after a jump.
    num_resamples: number of times that each step is made; 1 makes no jumps.
    Raises ValueError unless both are at least 1.

    >>> from diffusion_lab import RePaint
    >>> RePaint(jump_length=2, num_resamples=2).states(num_steps=6)
    [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    """

    name: ClassVar[str] = "repaint"
    jump_length: int = 10
    num_resamples: int = 10

    def __post_init__(self) -> None:
        for name, value in (("jump_length", self.jump_length), ("num_resamples", self.num_resamples)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        require_single_states(self, sampler)
        require_spectral(self, measurement)
        if measurement.noise_std > 0:
            raise UserError(
                f"task.noise must be 0 for posterior=repaint, got {measurement.noise_std}; "
                "posterior=replace takes noise."
            )

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
        return sample_along(self.states(len(steps)), steps, measurement, on_step)

    def states(self, num_steps: int) -> list[int]:
        """Return the visited states from 0, pure noise, to num_steps, the images; see `Steps`."""
        jumps = {
            num_steps - 1 - to_end: self.num_resamples - 1
            for to_end in range(0, num_steps - self.jump_length, self.jump_length)
        }
        states = [0]
        while states[-1] < num_steps:
            states.append(states[-1] + 1)
            if jumps.get(states[-1], 0) > 0:
                jumps[states[-1]] -= 1
                states.append(states[-1] - self.jump_length)
        return states

    def num_steps(self, sampler: Sampler) -> int:
        states = self.states(len(sampler.times))
        return sum(following > k for k, following in pairwise(states))

    def num_evaluations(self, sampler: Sampler) -> int:
        """Return the number of evaluations of the denoiser, for a sampler whose steps all have the same number."""
        return round(sampler.num_evaluations * self.num_steps(sampler) / len(sampler.times))
