"""Generate images from a trained run.

python src/sample.py run=logs/train/RUN num_images=64                               # a grid and PNG files
python src/sample.py run=logs/train/RUN label=7 guidance_scale=2 animation=true
python src/sample.py run=logs/train/RUN image=57                                    # only image 57
python src/sample.py run=logs/train/RUN sampler=ddim sampler.num_steps=20 num_images=50000 save_npz=true
python src/sample.py run=logs/train/BASE 'cascade=[logs/train/UPSAMPLER]'           # a cascade
torchrun --nproc-per-node 8 src/sample.py run=logs/train/RUN trainer=ddp num_images=50000 save_npz=true

Results: logs/sample/<date>_<time> contains the grid samples.png and images/.
Resuming: the same command generates only the batches that an interrupted command did not finish.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import class_names
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.images.animations import ANIMATIONS, require_pictures, save_animation
from diffusion_lab.runs.images.job import generate_batches, image_job, note_reused
from diffusion_lab.runs.images.one_target import find_one_target
from diffusion_lab.runs.setup import sampling as sampling_setup

if TYPE_CHECKING:
    from diffusion_lab.generation.seeded_images import SeededImages

FILES = ("samples.png", "conditions.png", *ANIMATIONS, "samples_*.npz", "images")
"""Glob patterns of the files and of the folder with images that the command writes, in the order of its last line."""


def sample(config: DictConfig) -> None:
    """Generate the images of the requested seeds with the network of a run; write a grid and image files."""
    target = find_one_target(config)
    seeds = _seeds(config)
    sampling_setup.require_loadable(config, [target])
    fabric = sampling_setup.launch_fabric(config)

    from diffusion_lab.data.classes import numbering  # the package imports torch

    images, step = sampling_setup.build_images(config, target, fabric)
    if fabric.is_global_zero and images.labels([0]) is not None and (names := class_names.load(target.folder)):
        print(f"classes: {numbering(names, images.trained)}", flush=True)
    with fabric.autocast():
        _generate(config, images, target, step, seeds)
    if fabric.is_global_zero:
        count, folder = sum(map(len, seeds)), Path(config.output_folder)
        files = ", ".join(path.name for name in FILES for path in sorted(folder.glob(name)))
        text = f"{count:,} images of {target.folder} at step {step:,} are in {folder}: {files}"
        print(terminal_text(text), flush=True)


def _seeds(config: DictConfig) -> list[range]:
    """Return the requested seeds as contiguous ranges.  Raises UserError if a setting is out of range."""
    sampling_setup.require_whole_numbers(config)
    require_pictures(config)
    if config.image is None:
        return [range(config.seed, config.seed + config.num_images)]
    numbers = list(config.image) if OmegaConf.is_list(config.image) else [config.image]
    if not numbers or any(not isinstance(k, int) or isinstance(k, bool) or k < 0 for k in numbers):
        raise UserError(f"`image` must be a whole number of at least 0 or a list of such numbers, got {config.image}.")
    return [range(config.seed + k, config.seed + k + 1) for k in sorted(set(numbers))]


def _generate(config: DictConfig, images: "SeededImages", target: Target, step: int, seeds: list[range]) -> None:
    """Generate the batches of this rank and write all files.  Finished batches are stored until the job is complete."""
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.generation.grid_columns import num_columns

    batches = [batch for contiguous in seeds for batch in images.batches(contiguous)]
    ranks, folder = Ranks.current(), Path(config.output_folder)
    own_batches = ranks.shard(batches)
    with image_job(config, images, target, step, seeds, folder) as files:
        note_reused(images, own_batches)
        try:
            if config.animation:
                save_animation(images, batches, folder, config, config.num_columns or num_columns(images))
            generate_batches(images, own_batches, files, "sampling")
        except ValueError as error:
            raise UserError(str(error)) from error
        files.finish(images.shape)
        if images.condition_images is not None and not config.cascade and config.num_pictures and ranks.rank == 0:
            _save_conditions(images, batches, folder / "conditions.png", config)


def _save_conditions(images: "SeededImages", batches: list[range], path: Path, config: DictConfig) -> None:
    """Write a grid of the condition images, in the order of the grid of the samples."""
    import torch

    from diffusion_lab.generation.grid_columns import num_columns
    from diffusion_lab.reporting.image_grids import grid, save_picture

    source = images.condition_images
    assert source is not None
    shown = batches[: config.num_pictures]  # at least one image each
    pictures = torch.cat([source.pictures(batch) for batch in shown])[: config.num_pictures]
    save_picture(grid(pictures, config.num_columns or num_columns(images)), path)


def main() -> None:
    entry.entry("sample", sample, keeps_status=True)


if __name__ == "__main__":
    main()
