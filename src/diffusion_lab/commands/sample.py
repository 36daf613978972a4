"""Draws images from a trained run.

python src/sample.py run=logs/train/RUN num_images=64
python src/sample.py run=logs/train/RUN label=7 guidance_scale=2 animation=true
python src/sample.py run=logs/train/RUN image=57                       # image 57 alone, the same as among the others
torchrun --nproc-per-node 8 src/sample.py run=logs/train/RUN trainer=ddp num_images=50000 save_npz=true
"""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.runs import sampling_setup

if TYPE_CHECKING:
    from diffusion_lab.generation.seeded_images import SeededImages


def sample(config: DictConfig) -> None:
    """Run folder + seeds -> a grid, and image files."""
    target, *others = sampling_setup.find_targets(config)
    if others:
        raise UserError(f"run must be one run, and checkpoint one of its files, got {1 + len(others)} of them.")
    rows = _seeds(config)
    fabric = sampling_setup.launch_fabric(config)
    images, step = sampling_setup.build_images(config, target, fabric)
    with fabric.autocast():
        _draw(config, images, rows)
    if fabric.is_global_zero:
        count = sum(map(len, rows))
        print(f"{count:,} images of {target.folder} after {step:,} steps are in {config.output_folder}", flush=True)


def _seeds(config: DictConfig) -> list[range]:
    """The seeds asked for, in rows of neighbours."""
    for name, least in (("seed", 0), ("num_images", 1), ("num_pictures", 0)):
        if not isinstance(config[name], int) or isinstance(config[name], bool) or config[name] < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {config[name]}.")
    if config.animation and not config.num_pictures:
        raise UserError("num_pictures must be at least 1 for an animation of them, got 0.")
    if config.image is None:
        return [range(config.seed, config.seed + config.num_images)]
    numbers = list(config.image) if OmegaConf.is_list(config.image) else [config.image]
    if not numbers or any(not isinstance(k, int) or isinstance(k, bool) or k < 0 for k in numbers):
        raise UserError(f"image must be a number of at least 0, or a list of such, got {config.image}.")
    return [range(config.seed + k, config.seed + k + 1) for k in sorted(set(numbers))]


def _draw(config: DictConfig, images: "SeededImages", rows: list[range]) -> None:
    """Draws this process's share; finished batches are kept until all is done."""
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.reporting.image_files import ImageFiles
    from diffusion_lab.reporting.progress import progress_bar

    images.folder = sampling_setup.work_folder(config, images)
    batches = [batch for row in rows for batch in images.batches(row)]
    ranks = Ranks.current()
    mine = ranks.shard(batches)
    folder, size = Path(config.output_folder), {"num_columns": config.num_columns}
    files = ImageFiles(folder, num_pictures=config.num_pictures, png=config.save_png, npz=config.save_npz, **size)
    files.prepare()
    done = sum(ranks.all_gather_object(sum(len(batch) for batch in mine if images.is_cached(batch))))
    if done and ranks.rank == 0:
        print(f"note: {done:,} of these images were drawn before an interruption and are kept.", flush=True)
    try:
        if config.animation:
            _animate(images, batches, folder / "samples.webp", config)
        with ranks.raise_together(), progress_bar("sampling", sum(map(len, mine))) as advance:
            for batch in mine:
                files.look(batch, images.draw(batch))
                advance(len(batch))
    except ValueError as error:
        raise UserError(str(error)) from error
    files.finish(images.shape)
    sampling_setup.remove_work_folder(config, images)


def _animate(images: "SeededImages", batches: list[range], path: Path, config: DictConfig) -> None:
    """Writes how the first images came to be."""
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.generation.seeded_images import draw_with_frames
    from diffusion_lab.reporting.image_grids import grid, save_animation
    from diffusion_lab.reporting.progress import progress_bar

    ranks = Ranks.current()
    enough = -(-config.num_pictures // images.batch_size) + 1
    mine = ranks.shard(batches[:enough])
    with progress_bar("drawing steps", len(images.sampler.times) * len(mine), "steps") as advance:
        _, frames = draw_with_frames(images, mine, config.num_frames, advance)
    if ranks.rank == 0:
        pictures = [grid(frame[: config.num_pictures], config.num_columns) for frame in frames]
        save_animation(pictures, path)


def main() -> None:
    entry.entry("sample", sample, keeps_status=True)
