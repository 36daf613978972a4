"""Base class of tasks: edits of source images with a trained network."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.edits.sources import Sources
from diffusion_lab.fingerprints import describe
from diffusion_lab.inverse_problems import Measurement
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import Noise, OnStep, Sampler

Decode = Callable[[Tensor], Tensor]
"""Differentiable map from the latent space of a network to images."""


@dataclass(frozen=True, eq=False)
class Generator:
    """The objects with which a task generates images.

    sampler, denoiser: sampler and denoiser, which is guided if samples are guided.
    condition: condition of the results, such as their classes.  noise: noise source with one stream per result.
    encode, decode: maps between images and the latent space of the network; None in pixel space.
    on_step: see `samplers.OnStep`.
    """

    sampler: Sampler
    denoiser: DenoiserLike
    condition: Condition
    noise: Noise
    encode: Callable[[Tensor], Tensor] | None = None
    decode: Decode | None = None
    on_step: OnStep | None = None

    def to_x_0(self, images: Tensor) -> Tensor:
        """Return x_0 of images: the images, or their latents."""
        return images if self.encode is None else self.encode(images)

    def to_images(self, x_0: Tensor) -> Tensor:
        """Return the images of x_0."""
        return x_0 if self.decode is None else self.decode(x_0).detach()


class Task(DataclassInterface):
    """An edit of images. Each result is generated from one source image.

    Each task is a frozen dataclass.
    name: name of the task in messages, which is its choice of the setting `task`.
    needs_label: whether the class of the results must be given.
    """

    name: ClassVar[str]
    needs_label: ClassVar[bool] = False

    @abstractmethod
    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        """Return one result for each source image, [B, C, H, W] in [-1, 1]."""

    def require(self, sampler: Sampler, sources: Sources, decode: Decode | None) -> None:
        """Raise UserError or ValueError if the task does not take the sampler, or cannot edit the sources.

        decode: see `Generator`.
        """

    def measurement(self, sources: Sources) -> Measurement | None:
        """Return the measurement that the results must agree with; None for tasks without one."""
        return None

    def picture(self, sources: Sources) -> Tensor | None:
        """Return what the network receives of each source, as images [B, C, H, W]; None if this is the source."""
        return None

    def protocol(self) -> dict[str, Any]:
        """Return the settings of the task, for fingerprints, without paths: the sources describe masks in files."""
        return describe(self, omit=("path",)) | {"pasted": self.pastes}  # type: ignore[no-any-return]

    @property
    def upsampling(self) -> "Task | None":
        """Task of the super-resolution networks of a cascade, which receive the results of the network before them.

        None for tasks that edit images of one resolution only.
        """
        return None

    @property
    def pastes(self) -> bool:
        """Whether known pixels of the source replace those of the result."""
        return False

    @property
    def hides_source(self) -> bool:
        """Whether the colors of the source that the results replace are unknown."""
        return False

    def num_steps(self, sampler: Sampler) -> int:
        """Return the number of calls of on_step."""
        return len(sampler.times)

    def num_evaluations(self, sampler: Sampler) -> int:
        """Return the number of evaluations of the denoiser for one result."""
        return sampler.num_evaluations

    def num_passes(self, sampler: Sampler) -> int:
        """Return the number of forward passes that take as long as the evaluations and gradients of one result."""
        return self.num_evaluations(sampler)
