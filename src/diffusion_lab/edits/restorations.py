"""Super-resolution, deblurring, colorization, denoising and compressed sensing."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from diffusion_lab.edits.restoration import Restoration
from diffusion_lab.edits.sources import Sources
from diffusion_lab.inverse_problems import (
    AreaDownsampling,
    BicubicDownsampling,
    CompressedSensing,
    GaussianBlur,
    Grayscale,
    IdentityOperator,
    LinearOperator,
    MotionBlur,
    PiGDM,
    PosteriorSampler,
)

DOWNSAMPLING = {"area": AreaDownsampling, "bicubic": BicubicDownsampling}


@dataclass(frozen=True)
class SuperResolution(Restoration):
    """Images of a higher resolution.

    factor: ratio of the resolutions.  downsampling: "area" or "bicubic" downsampling of the source images.
    posterior, noise: see `Restoration`.
    """

    name: ClassVar[str] = "super_resolution"

    factor: int = 4
    downsampling: Literal["area", "bicubic"] = "area"
    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downsampling not in DOWNSAMPLING:
            raise ValueError(f"downsampling must be {' or '.join(DOWNSAMPLING)}, got {self.downsampling}.")
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}.")

    def operator(self, sources: Sources) -> LinearOperator:
        return DOWNSAMPLING[self.downsampling](sources.image_shape, factor=self.factor)


@dataclass(frozen=True)
class Deblur(Restoration):
    """Sharp images from images with a Gaussian blur.

    std: standard deviation of the blur in pixels.  posterior, noise: see `Restoration`.
    """

    name: ClassVar[str] = "deblur"

    std: float = 2.0
    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    def operator(self, sources: Sources) -> GaussianBlur:
        return GaussianBlur(sources.image_shape, std=self.std)


@dataclass(frozen=True)
class DeblurMotion(Restoration):
    """Sharp images from images with a motion blur.

    length: length of the motion in pixels.  angle: its direction in degrees, counterclockwise from a horizontal line.
    posterior, noise: see `Restoration`.
    """

    name: ClassVar[str] = "deblur_motion"

    length: float = 9.0
    angle: float = 0.0
    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    def operator(self, sources: Sources) -> MotionBlur:
        return MotionBlur(sources.image_shape, length=self.length, angle=self.angle)


@dataclass(frozen=True)
class Colorize(Restoration):
    """Color images from gray images.  posterior, noise: see `Restoration`."""

    name: ClassVar[str] = "colorize"

    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    @property
    def upsampling(self) -> "Colorize":
        return self  # the gray image of a downsampled image is the downsampled gray image

    def operator(self, sources: Sources) -> Grayscale:
        return Grayscale(sources.image_shape)

    def picture(self, sources: Sources) -> Tensor:
        return self.measurement(sources).y.expand_as(sources.images)


@dataclass(frozen=True)
class Denoise(Restoration):
    """Images without the noise of their measurement.

    posterior, noise: see `Restoration`.  Raises ValueError unless noise is above 0.
    """

    name: ClassVar[str] = "denoise"

    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise == 0:
            raise ValueError(f"noise must be above 0 for task=denoise, got {self.noise}.")

    @property
    def upsampling(self) -> "Denoise":
        return self

    def operator(self, sources: Sources) -> IdentityOperator:
        return IdentityOperator(sources.image_shape)


@dataclass(frozen=True)
class CompressedSense(Restoration):
    """Images from random coefficients of an orthogonal transform.

    fraction: number of measured coefficients, divided by the number of values of an image.
    posterior, noise: see `Restoration`.
    """

    name: ClassVar[str] = "compressed_sensing"

    fraction: float = 0.25
    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    def operator(self, sources: Sources) -> CompressedSensing:
        return CompressedSensing(sources.image_shape, fraction=self.fraction)
