"""Generation of a sequence of frames: a path through noise tensors, classes or guidance scales, and its animation.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from diffusion_lab.config import compilation
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import class_names
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.images import edit_metrics
from diffusion_lab.runs.images.animations import ANIMATIONS, animation_format
from diffusion_lab.runs.images.job import generate_batches, image_job, note_reused
from diffusion_lab.runs.images.one_target import find_one_target
from diffusion_lab.runs.setup import sampling as sampling_setup
from diffusion_lab.runs.setup.frames import build_frames, build_smoothness, complete, is_sequence

if TYPE_CHECKING:
    from diffusion_lab.evaluation.number import Number
    from diffusion_lab.generation.frame_images import FrameImages
    from diffusion_lab.metrics import Smoothness

__all__ = ["generate_sequence", "is_sequence"]

FILES = ("samples.png", *ANIMATIONS, "samples_*.npz", "images")
"""Glob patterns of the files and of the folder with images that are written, in the order of the last line."""

TILE = 224
"""Approximate side in pixels of a frame in an animation, and of a frame with a caption."""

FPS, REST = 12, 1.0
"""Default number of frames per second, and duration of the last frame of an open sequence in seconds."""

LONGEST_NAME = 24
"""Largest number of characters of the name of a class in a caption."""


def generate_sequence(config: DictConfig) -> float | None:
    """Generate the frames of a sequence with the network of a run; write a grid, image files and an animation.

    Returns the value that a search minimizes: the mean distance of neighboring frames, or None if it is not measured.
    """
    complete(config)
    animation_format(config)
    target = find_one_target(config)
    sampling_setup.require_loadable(config, [target])
    fabric = sampling_setup.launch_fabric(config)
    images, step = build_frames(config, target, fabric)
    metric = build_smoothness(config, target)
    with fabric.autocast():
        numbers, seconds = _generate(config, images, metric, target, step)
    if fabric.is_global_zero:
        folder = Path(config.output_folder)
        if numbers:
            edit_metrics.write_results(numbers, images, {"smoothness": seconds}, target, step, folder)
        files = ", ".join(path.name for name in FILES for path in sorted(folder.glob(name)))
        text = f"{images.num_images:,} frames of {target.folder} at step {step:,} are in {folder}: {files}"
        print(terminal_text(text), flush=True)
    return numbers[0].objective if numbers else None


def _generate(
    config: DictConfig, images: "FrameImages", metric: "Smoothness | None", target: Target, step: int
) -> tuple[list["Number"], float]:
    """Generate the batches of this rank and write all files. Finished batches are stored until the job is complete.

    Returns the values of the metric on rank 0, and the seconds that they took.
    """
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.evaluation.frame_evaluator import measure_smoothness

    ranks, folder, indices = Ranks.current(), Path(config.output_folder), range(images.num_images)
    own_batches, numbers, started = ranks.shard(images.batches(indices)), list["Number"](), time.perf_counter()
    with image_job(config, images, target, step, [indices], folder) as files:
        files.num_pictures = 0  # the grid is written with the captions
        note_reused(images, own_batches)
        try:
            generate_batches(images, own_batches, files, images.action)
        except ValueError as error:
            raise UserError(str(error)) from error
        files.finish(images.shape)
        ranks.all_gather_object(None)  # barrier: the batches of all ranks are cached
        with ranks.raise_together():
            if ranks.rank == 0:
                _save_pictures(config, images, target, folder)
                started = time.perf_counter()
                precision = compilation.precision_name(config.trainer)
                numbers = measure_smoothness(images, metric, precision) if metric is not None else []
    return numbers, time.perf_counter() - started


def _save_pictures(config: DictConfig, images: "FrameImages", target: Target, folder: Path) -> None:
    """Write the grid of the first num_pictures frames, and the animation of all frames, both with captions."""
    import torch

    from diffusion_lab.reporting.captions import with_caption
    from diffusion_lab.reporting.image_grids import grid, save_animation, save_picture

    frames = torch.cat([images.generate(batch).cpu() for batch in images.batches(range(images.num_images))])
    names = class_names.load(target.folder)
    pictures = [grid(frame[None], 1, TILE) for frame in frames]
    if config.captions:
        pictures = [with_caption(picture, caption(images, k, names)) for k, picture in enumerate(pictures)]
    if config.num_pictures:
        shown = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) if config.captions else frames
        shown = shown[: config.num_pictures]
        save_picture(grid(shown, min(config.num_columns, len(shown))), folder / "samples.png")
    if config.animation:
        path, rest = folder / f"samples.{animation_format(config)}", 0.0 if images.sequence.is_closed else REST
        save_animation(pictures, path, fps=FPS if config.fps is None else config.fps, rest=rest)


def caption(images: "FrameImages", frame: int, names: Sequence[str]) -> list[str]:
    """Return the lines of the caption of a frame: its number, its guidance scale if this changes, and its classes.

    names: names of the classes; empty if they are not known.
    """
    scale = images.sequence.guidance_scale(images.place(frame))
    number = f"frame {frame} of {images.num_images}" + ("" if scale is None else f", guidance {scale:.3g}")
    classes = images.classes(frame)
    shown = [
        f"{_class_name(k, names)} {weight:.0%}" if weight < 1 else _class_name(k, names)
        for k, weight in classes.items()
    ]
    return [number, *([", ".join(shown)] if shown else [])]


def _class_name(label: int, names: Sequence[str]) -> str:
    return terminal_text(names[label], LONGEST_NAME) if label < len(names) else f"class {label}"
