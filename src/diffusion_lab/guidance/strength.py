"""The strength of guidance, and the noise levels at which it is active."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.contracts import added, require_instance
from diffusion_lab.denoiser import Denoiser, DenoiserLike, Estimate, require_estimate
from diffusion_lab.fingerprints import describe
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Prediction


@dataclass(frozen=True)
class Strength:
    """Extrapolation from a weak estimate through a strong estimate, and the noise levels at which it applies.

    guidance_scale: factor in guided = weak + guidance_scale * (strong - weak). A factor of 1 gives the strong estimate,
        a factor of 0 gives the weak estimate. The w of Ho & Salimans (2022), eq. 6, is guidance_scale - 1.
    interval: two noise levels sigma_t / alpha_t. Guidance is active above the first level and up to the second level
        (Kynkäänniemi et al. 2024, eq. 5); None activates guidance at all levels.
    rescale: fraction by which the standard deviation of the network output is restored to its value without guidance
        (the phi of Lin et al. 2024, eq. 15 and 16); 0 disables rescaling.
    num_channels: number of first channels that are guided; the other channels keep the strong estimate (Peebles & Xie
        2023, code, which guides three of four latent channels). None guides all channels.

    Raises ValueError unless guidance_scale is finite and at least 0, interval is increasing, rescale is in [0, 1], and
    num_channels is at least 1.

    >>> from diffusion_lab import EDMSchedule, GaussianProcess, Strength
    >>> strength = Strength(2.0, interval=(0.3, 5.0))
    >>> strength.is_active(GaussianProcess(EDMSchedule()), torch.tensor([0.1, 1.0, 10.0]))
    tensor([False,  True, False])
    """

    guidance_scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    num_channels: int | None = added(None)

    def __post_init__(self) -> None:
        # A negative scale would move the estimate away from the condition, which no paper defines.
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"guidance_scale must be a finite number of at least 0, got {self.guidance_scale}.")
        if self.interval is not None and not (len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]):
            raise ValueError(f"interval must be two increasing noise levels of at least 0, got {list(self.interval)}.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}.")
        given: Any = self.num_channels
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ValueError(f"num_channels must be a whole number of at least 1, got {given}.")

    @staticmethod
    def of(strength: "Strength | float") -> "Strength":
        """Return a strength; a number is its guidance scale.  Raises ValueError for any other object."""
        given: Any = strength
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return Strength(float(given))
        if not isinstance(given, Strength):
            raise ValueError(
                f"`strength` must be a guidance scale, such as 2.0, or a diffusion_lab.Strength, got {given!r}."
            )
        return given

    def require_channels(self, channels: int) -> None:
        """Raise ValueError if guidance would apply to more channels than images with this number of channels have."""
        if self.num_channels is not None and self.num_channels > channels:
            raise ValueError(
                f"num_channels of the guidance must be in 1..{channels} (the channels of the images or latents), got "
                f"{self.num_channels}."
            )

    def protocol(self, channels: int) -> dict[str, Any]:
        """Return the settings that affect images with this number of channels, for fingerprints."""
        scale = {"guidance_scale": float(self.guidance_scale)}
        effective = replace(self, num_channels=None) if self.num_channels == channels else self
        if self.guidance_scale == 1 or not (self.interval or self.rescale or effective.num_channels):
            return scale
        return scale | {"guidance": describe(effective, omit=("guidance_scale",))}

    def is_active(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Return whether guidance changes the estimate at each time: bool [B].  t: [B]."""
        if self.guidance_scale == 1:
            return torch.zeros(len(t), dtype=torch.bool)
        if self.interval is None:
            return torch.ones(len(t), dtype=torch.bool)
        alpha_t, sigma_t = process.unbounded.schedule.coefficients(t)
        level = sigma_t / alpha_t
        return (level > self.interval[0]) & (level <= self.interval[1])

    def extrapolate(self, strong: Tensor, weak: Tensor, x_t: Tensor, t: Tensor, guidable: "Guidable") -> Tensor:
        """Return the guided estimate of x_0.  strong, weak, x_t and the result: [B, C, H, W].  t: [B].

        Extrapolation of x_0 is equivalent to extrapolation of the noise, which is a linear function of x_0 in each
        channel.  Raises ValueError if C is smaller than num_channels.
        """
        self.require_channels(strong.shape[1])
        if self.num_channels is None or self.num_channels == strong.shape[1]:
            return self._extrapolate(strong, weak, x_t, t, guidable)
        rest = strong[:, self.num_channels :]
        strong, weak, x_t = (images[:, : self.num_channels] for images in (strong, weak, x_t))
        return torch.cat([self._extrapolate(strong, weak, x_t, t, guidable), rest], dim=1)

    def _extrapolate(self, strong: Tensor, weak: Tensor, x_t: Tensor, t: Tensor, guidable: "Guidable") -> Tensor:
        """Return the guided estimate in all channels of the arguments, see `extrapolate`."""
        guided = torch.lerp(weak, strong, self.guidance_scale)
        if not self.rescale:
            return guided
        preconditioning = guidable.prediction.preconditioning(t, guidable.process.unbounded)
        output, unguided_output = preconditioning.output(guided, x_t), preconditioning.output(strong, x_t)
        std = output.flatten(1).std(dim=1)  # [B]
        ratio = torch.where(std > 0, unguided_output.flatten(1).std(dim=1) / std, 1.0)
        factor = self.rescale * ratio + (1 - self.rescale)
        return preconditioning.x_0(output * GaussianProcess.widen(factor, output), x_t)


@dataclass(frozen=True)
class Guidable:
    """A denoiser with the process and the prediction type that are needed to recover its network output.

    `Guidable.from_denoiser` builds it from a `Denoiser`.
    """

    denoiser: DenoiserLike
    process: GaussianProcess
    prediction: Prediction

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))

    @staticmethod
    def from_denoiser(denoiser: "Denoiser | Guidable") -> "Guidable":
        if isinstance(denoiser, Guidable):
            return denoiser
        require_instance(denoiser, Denoiser, "denoiser")
        return Guidable(denoiser, denoiser.process, denoiser.prediction)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        return require_estimate(self.denoiser(x_t, t, condition), self.denoiser)


def require_same_process(name: str, model: Any, denoiser: Any) -> None:
    """Raise ValueError if the guide or classifier `model` and the denoiser that it guides have different processes.

    name: name of the argument.  Functions have no process and are not checked.
    """
    given, expected = getattr(model, "process", None), getattr(denoiser, "process", None)
    if given is not None and expected is not None and given != expected:
        raise ValueError(
            f"`{name}` must be trained with the schedule of the network that it guides ({expected.schedule}), got "
            f"{given.schedule}."
        )
