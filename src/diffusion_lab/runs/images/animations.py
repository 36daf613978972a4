"""Animations of the sampling steps of the first images of a job.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from diffusion_lab.errors import UserError
from diffusion_lab.paths import install_command

if TYPE_CHECKING:
    from diffusion_lab.generation.batched_images import BatchedImages

FORMATS = ("webp", "gif", "mp4")
"""File formats of animations; the first is the default."""

ANIMATIONS = tuple(f"samples.{suffix}" for suffix in FORMATS)
"""Names of animations in output folders."""


def animation_format(config: DictConfig) -> str:
    """Return the file format of the animation.

    Raises UserError if `animation` has another value, if the format requires a package that is missing, or if `fps` is
    not a rate.
    """
    if config.animation not in (True, False, *FORMATS):
        raise UserError(
            f"`animation` must be false, true, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {config.animation}."
        )
    if config.animation == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise UserError(
            "`animation` must be webp or gif without the package imageio-ffmpeg, got mp4; "
            f"{install_command('video')} installs it."
        )
    fps = config.fps
    is_rate = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
    if not (fps is None or is_rate):
        raise UserError(f"fps must be a number of frames per second above 0, got {fps}.")
    return config.animation if config.animation in FORMATS else FORMATS[0]


def require_pictures(config: DictConfig) -> None:
    """Raise UserError for an animation without images, or in another format."""
    animation_format(config)
    if config.animation and not config.num_pictures:
        raise UserError(f"num_pictures must be at least 1 for animation={str(config.animation).lower()}, got 0.")


def save_animation(
    images: "BatchedImages", batches: Sequence[range], folder: Path, config: DictConfig, num_columns: int
) -> None:
    """Write an animation of the sampling steps of the first num_pictures images. Collective: call on all ranks.

    batches: indices of all batches of the job.
    """
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.generation.seeded_images import generate_with_frames
    from diffusion_lab.reporting import image_grids
    from diffusion_lab.reporting.progress import progress_bar

    ranks = Ranks.current()
    num_batches = -(-config.num_pictures // images.batch_size) + 1
    own_batches = ranks.shard(batches[:num_batches])
    with progress_bar("animation", images.num_steps * len(own_batches), "steps") as advance:
        _, frames = generate_with_frames(images, own_batches, config.num_frames, advance)
    if ranks.rank == 0:
        pictures = [image_grids.grid(frame[: config.num_pictures], num_columns) for frame in frames]
        image_grids.save_animation(pictures, folder / f"samples.{animation_format(config)}", fps=config.fps)
