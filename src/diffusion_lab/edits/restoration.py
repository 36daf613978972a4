"""Base class of the tasks that restore an image from a measurement: linear inverse problems."""

import math
from abc import abstractmethod
from dataclasses import replace

from torch import Tensor

from diffusion_lab.contracts import require_instance
from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Decode, Generator, Task
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems import LinearOperator, Measurement, PosteriorSampler
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.randomness import ImageNoise, Purpose
from diffusion_lab.samplers import Sampler


class Restoration(Task):
    """A sample of the posterior of the image given a measurement of the source image.

    Subclasses are frozen dataclasses with the fields
    posterior: posterior sampler.
    noise: standard deviation of the noise in the measurement, for images in [-1, 1].
    """

    posterior: PosteriorSampler
    noise: float

    def __post_init__(self) -> None:
        require_instance(self.posterior, PosteriorSampler, "posterior")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be a finite number of at least 0, got {self.noise}.")

    @abstractmethod
    def operator(self, sources: Sources) -> LinearOperator:
        """Return the operator that measures the source images."""

    def measurement(self, sources: Sources) -> Measurement:
        operator = self.operator(sources)
        if sources.original is not None:
            return self._downsampled(self.measurement(sources.original), operator)
        noise = ImageNoise(sources.numbers, operator.measurement_shape, purpose=Purpose.MEASUREMENT)
        return Measurement.of(operator, sources.images, self.noise, noise)

    def _downsampled(self, measurement: Measurement, operator: LinearOperator) -> Measurement:
        """Return a measurement that is downsampled for a network of a cascade, for operators that permit it.

        operator: operator at the lower resolution, whose measurements of downsampled images these are.
        """
        side, original = operator.image_shape[-1], measurement.operator.image_shape[-1]
        if self.noise and original % side:
            raise UserError(
                f"`cascade` must list runs whose resolutions are multiples of {side} (the resolution of `run`) for a "
                f"measurement with noise, got a run with {original}."
            )
        # The mean of k x k values with independent noise has the noise of one value, divided by k.
        return Measurement(operator, LowResolution(side).downsample(measurement.y), self.noise * side / original)

    def require(self, sampler: Sampler, sources: Sources, decode: Decode | None) -> None:
        try:
            measurement = self.measurement(sources)
        except ValueError as error:  # operators do not know the names of settings
            raise ValueError(f"task={self.name}: {error}") from error
        self.posterior.require(sampler, replace(measurement, noise_std=self.noise, decode=decode))  # the setting

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        measurement = replace(self.measurement(sources), decode=generator.decode, encode=generator.encode)
        x_0 = self.posterior.sample(
            generator.sampler, generator.denoiser, measurement, generator.noise, generator.condition, generator.on_step
        )
        return generator.to_images(x_0)

    def picture(self, sources: Sources) -> Tensor:
        """Return the measurements as images: y if it has the shape of images, else A^+ y."""
        measurement = self.measurement(sources)
        y = measurement.y
        return y if y.shape == sources.images.shape else measurement.operator.pseudo_inverse(y)

    def num_steps(self, sampler: Sampler) -> int:
        return self.posterior.num_steps(sampler)

    def num_evaluations(self, sampler: Sampler) -> int:
        return self.posterior.num_evaluations(sampler)

    def num_passes(self, sampler: Sampler) -> int:
        # Without gradients of the weights, a backward pass takes about as long as a forward pass.
        return self.num_evaluations(sampler) * (1 + self.posterior.num_gradients)
