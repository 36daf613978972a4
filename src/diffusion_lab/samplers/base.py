"""Base classes of samplers: shared settings, the initial noise, and the loop over fixed steps."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface, described, require_instance
from diffusion_lab.denoiser import DenoiserLike, require_denoiser
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Variance
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping
from diffusion_lab.samplers.estimator import Estimator
from diffusion_lab.samplers.step_results import require_step, require_steps
from diffusion_lab.samplers.time_grids import TimeGrid


class Noise(Protocol):
    """A source of standard normal noise for a fixed batch of images."""

    def draw(self) -> Tensor:
        """Return the next noise tensor, which has a separate sample for each image: [B, C, H, W], float32."""


@dataclass(frozen=True)
class GivenNoise:
    """A noise source that returns the same tensor at every draw, for samplers that only draw their initial noise.

    Samplers that draw noise again raise ValueError, because their steps need independent noise.
    noise: [B, C, H, W], standard normal.
    """

    noise: Tensor

    def draw(self) -> Tensor:
        return self.noise


@dataclass(frozen=True)
class _NoMoreNoise:
    """The noise source of the steps if only the initial noise was given."""

    def draw(self) -> Tensor:
        raise ValueError(
            "`noise` must be a source of independent noise for a sampler that adds noise in its steps, such as "
            "ImageNoise(range(16), (3, 32, 32)), got a tensor, which is the initial noise only."
        )


def noise_sources(noise: Noise | Tensor) -> tuple[Noise, Noise]:
    """Return the source of the initial noise and the source of the noise that is added in the steps.

    noise: source of both, or the initial noise alone, [B, C, H, W].  Raises ValueError for any other object.
    """
    initial = GivenNoise(noise) if isinstance(noise, Tensor) else noise
    if not hasattr(initial, "draw"):
        raise ValueError(
            "`noise` must be a tensor of standard normal noise [B, C, H, W] or an object with the method draw(), such "
            f"as ImageNoise(range(16), (3, 32, 32)), got {described(noise)}."
        )
    return initial, _NoMoreNoise() if isinstance(initial, GivenNoise) else initial


OnStep = Callable[[int, Tensor, Tensor], None]
"""Callback after each step, with arguments (number of completed steps, x_t after the step, estimate of x_0)."""


class Sampler(DataclassInterface):
    """An algorithm that turns noise into images along a decreasing list of times.

    Each sampler is a frozen dataclass. It has the following four fields and the settings of its algorithm.
    process: forward process whose reverse is sampled, or its noise schedule.
    num_steps: number of times in the list; None selects every step of a discrete schedule.
    time_grid: rule that chooses the times.
    clipping: rule for estimates of x_0 outside [-1, 1].
    has_adaptive_steps: whether the number of evaluations depends on the denoiser, so that `num_evaluations` is typical.

    The constructor raises ValueError if the schedule has fewer steps than num_steps. A denoiser is a `Denoiser` with a
    trained network or a function that predicts the noise, or any function of (x_t, t, condition) that returns an
    `Estimate`:

    >>> from diffusion_lab import DDIM, CosineSchedule, Estimate, ImageNoise
    >>> def gray(x_t, t, condition):
    ...     return Estimate(x_0=torch.full_like(x_t, 0.5))
    >>> images = DDIM(CosineSchedule()).sample(gray, ImageNoise(range(2), (3, 8, 8)))
    >>> images.shape, round(float(images.mean()), 3)
    (torch.Size([2, 3, 8, 8]), 0.5)
    """

    has_adaptive_steps: ClassVar[bool] = False

    process: GaussianProcess
    num_steps: int | None
    time_grid: TimeGrid
    clipping: Clipping

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))
        parts = {"time_grid": TimeGrid, "clipping": Clipping, "churn": Churn, "variance": Variance}
        for name in parts.keys() & vars(self).keys():
            require_instance(getattr(self, name), parts[name], name)
        self.process.validate_times(self.times)

    @abstractmethod
    def sample(
        self,
        denoiser: DenoiserLike,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return images [B, C, H, W], in [-1, 1] if estimates of x_0 are clipped.  No gradients are computed.

        noise: source of the initial noise and of the noise that is added in the steps, or the initial noise, standard
            normal [B, C, H, W], for a sampler that adds none.
        condition: condition of the images, or their labels, int64 [B].  on_step: see `OnStep`.
        """

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The times at which steps start: decreasing, all above 0. The last step ends at 0."""
        return self.time_grid(self.process.schedule, self.num_steps)

    @property
    def num_evaluations(self) -> int:
        """Number of denoiser evaluations in one call of `sample`: by default, one for each step.

        Samplers with several evaluations per step override this property. A sampler whose steps depend on the denoiser
        returns a typical number.
        """
        return len(self.times)

    def without_effect(self, *, classifier: bool) -> tuple[str, ...]:
        """Return the names of the fields of later versions that do not change the images, for fingerprints.

        Values that differ in such a field only are comparable. The fields are those of the sampler, of its parts, and
        of the prediction.
        classifier: whether a classifier guides the samples.
        """
        churn, t = getattr(self, "churn", None), torch.tensor(self.times, dtype=torch.float64)
        exceeds = churn is not None and churn.exceeds(self.process, t)
        names = ("after_guidance", classifier), ("above_t_max", exceeds), ("clip_mean", False)
        return tuple(name for name, has_effect in names if not has_effect)

    @property
    def initial_std(self) -> float:
        """Standard deviation of the noise from which sampling starts."""
        return float(self.process.schedule.prior_std(torch.tensor(self.times[0], dtype=torch.float64)))

    def estimator(self, denoiser: DenoiserLike, condition: Condition | Tensor | None) -> Estimator:
        """Return the estimator of x_0 with clipping.  Raises ValueError for a denoiser of another process."""
        require_denoiser(denoiser)
        process = getattr(denoiser, "process", None)  # functions have none
        if isinstance(process, GaussianProcess) and not process.adds_noise_of(self.process, self.times):
            raise ValueError(
                f"`denoiser` must have the process of the sampler ({self.process.schedule}), got a denoiser with "
                f"{process.schedule}."
            )
        return Estimator(denoiser, Condition.of(condition), self.process, self.clipping)


@dataclass
class StepContext:
    """State that the steps of one call of `FixedStepSampler.sample` share.

    previous: data that a multistep sampler stores for the next step; None before the first step.
    """

    estimate: Estimator
    noise: Noise
    previous: Any = None


class FixedStepSampler(Sampler):
    """A sampler that makes one step from each time of its list to the next time, and a step from the last time to 0."""

    @torch.no_grad()
    def sample(
        self,
        denoiser: DenoiserLike,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        initial_noise, step_noise = noise_sources(noise)
        context = StepContext(self.estimator(denoiser, condition), step_noise)
        t, s = self.intervals()
        times, table = require_steps(self, self.prepare_steps(t, s), len(t))
        x_t = initial_noise.draw() * self.initial_std
        # The coefficients are Python numbers, so that a step never waits for the device of the images.
        for num_done, (t, coefficients) in enumerate(zip(times.unbind(), table.tolist(), strict=True), start=1):
            x_t, x_0 = require_step(self, self.step(x_t, t, coefficients, context), x_t)
            if on_step is not None:
                on_step(num_done, x_t, x_0)
        return x_t

    def intervals(self) -> tuple[Tensor, Tensor]:
        """Return the start t and the end s of each step, float64 [num_steps] each. The last s is 0."""
        t = torch.tensor(self.times, dtype=torch.float64)
        return t, torch.cat([t[1:], torch.zeros(1, dtype=torch.float64)])  # s equals the next t exactly

    @abstractmethod
    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time at which each step from t to s evaluates the denoiser, and the coefficients of the steps.

        t, s: see `intervals`.  Returns float64 [num_steps] and [num_steps, num_coefficients].
        """

    @abstractmethod
    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        """Return x_s at the end of a step, and the estimate of x_0 in this step.

        x_t and both results: [B, C, H, W]; x_t must not be modified.
        t: time at which this step evaluates the denoiser, [].  coefficients: coefficients of this step. Both are
            results of `prepare_steps`.
        """


def add_noise(x: Tensor, std: Tensor | float, noise: Tensor) -> Tensor:
    """Return x + std * noise, computed in place in x.  x, noise: [B, C, H, W]."""
    return x.add_(noise, alpha=std) if isinstance(std, float) else x.addcmul_(std, noise)
