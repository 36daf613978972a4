"""Tasks of the command edit: restorations, which are linear inverse problems, and variations of images.

A task generates a result from each source image with a sampler and a denoiser. `Restoration` combines a linear operator
with a posterior sampler; `Inpaint` also has a `Mask`, a rule that chooses the pixels that are filled.

Other tasks are a `FrameSequence`: images along a path through noise tensors, classes or guidance scales.
"""

from diffusion_lab.edits.frame_sequence import FrameSequence, Place
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
from diffusion_lab.edits.morph import Morph
from diffusion_lab.edits.noise_path import Interpolate, Walk
from diffusion_lab.edits.restoration import Restoration
from diffusion_lab.edits.restorations import (
    Colorize,
    CompressedSense,
    Deblur,
    DeblurMotion,
    Denoise,
    SuperResolution,
)
from diffusion_lab.edits.slerp import slerp
from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.sweep import Sweep
from diffusion_lab.edits.task import Generator, Task
from diffusion_lab.edits.variation import Style, Variation

__all__ = [
    "Color",
    "Colorize",
    "CompressedSense",
    "Deblur",
    "DeblurMotion",
    "Denoise",
    "FrameSequence",
    "Generator",
    "Half",
    "Inpaint",
    "Interpolate",
    "Invert",
    "Mask",
    "MaskFile",
    "Morph",
    "Outside",
    "Place",
    "RandomPixels",
    "RandomRectangle",
    "Rectangle",
    "Restoration",
    "Sources",
    "Style",
    "SuperResolution",
    "Sweep",
    "Task",
    "TransparentPixels",
    "Variation",
    "Walk",
    "slerp",
]
