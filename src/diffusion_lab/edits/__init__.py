"""Tasks of the command edit: restorations, which are linear inverse problems, and variations of images.

A task generates a result from each source image with a sampler and a denoiser. `Restoration` combines a linear operator
with a posterior sampler; `Inpaint` also has a `Mask`, a rule that chooses the pixels that are filled.
"""

from diffusion_lab.edits.inpaint import Inpaint
from diffusion_lab.edits.invert import Invert
from diffusion_lab.edits.masks import (
    Color,
    Half,
    Mask,
    MaskFile,
    Outside,
    RandomPixels,
    RandomRectangle,
    Rectangle,
    TransparentPixels,
)
from diffusion_lab.edits.restoration import Restoration
from diffusion_lab.edits.restorations import (
    Colorize,
    CompressedSense,
    Deblur,
    DeblurMotion,
    Denoise,
    SuperResolution,
)
from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Generator, Task
from diffusion_lab.edits.variation import Style, Variation

__all__ = [
    "Color",
    "Colorize",
    "CompressedSense",
    "Deblur",
    "DeblurMotion",
    "Denoise",
    "Generator",
    "Half",
    "Inpaint",
    "Invert",
    "Mask",
    "MaskFile",
    "Outside",
    "RandomPixels",
    "RandomRectangle",
    "Rectangle",
    "Restoration",
    "Sources",
    "Style",
    "SuperResolution",
    "Task",
    "TransparentPixels",
    "Variation",
]
