"""Inpainting by a network that was trained for it."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.pixel_operators import Inpainting
from diffusion_lab.inverse_problems.posterior import PosteriorSampler
from diffusion_lab.masking import encode_masked, masked_condition
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import Noise, OnStep, Sampler


@dataclass(frozen=True)
class InpaintingNetwork(PosteriorSampler):
    """Samples of a network that is conditioned on the image with the hole and on its mask (Saharia et al. 2022).

    The network is trained with a `Masking`, and learns the posterior itself: nothing is approximated but the network.
    The method takes every sampler, and measurements of `Inpainting` without noise whose holes have all channels. In a
    latent space, the network receives the latents of the image with the hole, see `encode_masked`.

    >>> from diffusion_lab import DDIM, Estimate, ImageNoise, Inpainting, InpaintingNetwork, Measurement, VPSchedule
    >>> hole = torch.tensor([[False, True]])
    >>> measurement = Measurement.of(Inpainting((1, 1, 2), hole), torch.full((1, 1, 1, 2), 0.7))
    >>> def network(x_t, t, condition):  # its estimate is the mean of the known pixels
    ...     return Estimate(x_0=condition.image[:, :1].sum() / condition.image[:, 1:].sum() + 0 * x_t)
    >>> InpaintingNetwork().sample(DDIM(VPSchedule(), num_steps=2), network, measurement, ImageNoise(1, (1, 1, 2)))
    tensor([[[[0.7000, 0.7000]]]])
    """

    name: ClassVar[str] = "network"

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        operator = measurement.operator
        if not isinstance(operator, Inpainting) or operator.hole.shape[1] != 1:
            raise UserError(
                f"`posterior` must be another choice for {type(operator).__name__}, got {self.name}, which fills holes."
            )
        if measurement.noise_std:
            raise UserError(f"task.noise must be 0 for posterior={self.name}, got {measurement.noise_std}.")

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
        operator = measurement.operator
        assert isinstance(operator, Inpainting)
        known = ~operator.hole.expand(len(measurement.y), -1, -1, -1)
        with_hole = masked_condition(Condition.of(condition).label, measurement.y, known)
        if measurement.decode is not None:
            with_hole = _encoded(with_hole, measurement)
        return sampler.sample(denoiser, noise, with_hole.to(measurement.y.device), on_step)


def _encoded(with_hole: Condition, measurement: Measurement) -> Condition:
    """Return the condition of a network for latents.  Raises UserError for a measurement without an encoder."""
    if measurement.encode is None:
        raise UserError("`encode` of the measurement must be given for posterior=network in a latent space, got None.")
    assert with_hole.image is not None
    return replace(with_hole, image=encode_masked(with_hole.image, measurement.encode))
