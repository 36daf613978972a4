"""Edit images with a trained run: inpainting and other restorations, variations, interpolations.

python src/edit.py run=logs/train/RUN images=test mask=half                          # fill the middle of 64 test images
python src/edit.py run=logs/train/RUN images=photo.png mask=file mask.path=mask.png num_results=8
python src/edit.py run=logs/train/RUN images=FOLDER mask=rectangle 'mask.box=[8,8,12,12]' posterior=repaint
python src/edit.py run=logs/train/RUN images=test task=super_resolution task.factor=4 'metrics=[psnr,ssim,fid]'
python src/edit.py run=logs/train/RUN images=FOLDER task=deblur task.noise=0.05 posterior=dps sampler=ancestral
python src/edit.py run=logs/train/RUN images=FOLDER task=variation task.strength=0.5
python src/edit.py run=logs/train/RUN images=FOLDER task=style label=7 guidance_scale=3
python src/edit.py run=logs/train/RUN task=walk label=7 captions=true                # a loop of 64 frames, animated
python src/edit.py run=logs/train/RUN images=test num_images=2 task=interpolate      # frames from image to image
python src/edit.py run=logs/train/RUN task=morph 'label=[sneaker,bag]' animation=mp4    # from class to class
python src/edit.py run=logs/train/RUN task=sweep 'task.guidance_scales=[0,8]'        # increasing guidance
python src/edit.py run=logs/train/BASE 'cascade=[logs/train/UPSAMPLER]' images=test mask=half   # in a cascade
python src/edit.py run=logs/train/RUN images=test task=invert guidance_scale=1 sampler=ddim sampler.num_steps=100
torchrun --nproc-per-node 8 src/edit.py run=logs/train/RUN images=test mask=half trainer=ddp num_images=1000

Results: logs/edit/<date>_<time> contains the grid samples.png, images/, measurements/, sources/ and metrics.json.
Resuming: the same command generates only the batches that an interrupted command did not finish.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.images import edit_metrics, frame_job
from diffusion_lab.runs.images.animations import ANIMATIONS, require_pictures, save_animation
from diffusion_lab.runs.images.job import generate_batches, image_job, note_reused
from diffusion_lab.runs.images.one_target import find_one_target
from diffusion_lab.runs.setup import edits as edit_setup
from diffusion_lab.runs.setup import sampling as sampling_setup

if TYPE_CHECKING:
    from diffusion_lab.evaluation.number import Number
    from diffusion_lab.generation.edited_images import EditedImages

FILES = ("samples.png", *ANIMATIONS, "samples_*.npz", "noises.npz", "images", "measurements")
"""Glob patterns of the files and folders that the command writes, in the order of its last line."""


def edit(config: DictConfig) -> float | None:
    """Generate the results of an edit with the network of a run; write a grid, image files and metric values.

    Returns the value that a search minimizes: the first metric value, with the opposite sign if a higher value is
    better, or None if no metric is measured.
    """
    sampling_setup.require_whole_numbers(config)
    if frame_job.is_sequence(config):
        return frame_job.generate_sequence(config)
    require_pictures(config)
    edit_setup.complete(config)
    target = find_one_target(config)
    sampling_setup.require_loadable(config, [target])
    fabric = sampling_setup.launch_fabric(config)
    images, step = edit_setup.build_edit(config, target, fabric)
    measurement, folder = edit_metrics.build_measurement(config, target, images), Path(config.output_folder)
    with fabric.autocast():
        numbers = _generate(config, images, measurement, target, step)
    if fabric.is_global_zero:
        if numbers:
            edit_metrics.write_results(numbers, images, measurement.seconds, target, step, folder)
        files = ", ".join(path.name for name in FILES for path in sorted(folder.glob(name)))
        text = f"{images.num_images:,} results of {target.folder} at step {step:,} are in {folder}: {files}"
        print(terminal_text(text), flush=True)
    return numbers[0].objective if numbers else None


def _generate(
    config: DictConfig, images: "EditedImages", measurement: edit_metrics.EditMeasurement, target: Target, step: int
) -> list["Number"]:
    """Generate the batches of this rank, write all image files, and return all metric values.

    Finished batches are stored until the job is complete.
    """
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.generation.edit_pictures import EditPictures

    ranks, folder, indices = Ranks.current(), Path(config.output_folder), range(images.num_images)
    batches = images.batches(indices)
    pictures = EditPictures(images, min(config.num_pictures, len(images.sources)), config.num_columns)
    config.num_pictures, config.num_columns = pictures.num_results, pictures.num_columns
    with image_job(config, images, target, step, [indices], folder) as files:
        files.arrange = pictures.arrange
        own_batches = ranks.shard(batches)
        note_reused(images, own_batches)  # before the animation, which stores the batches that it shows
        try:
            started = time.perf_counter()
            if config.animation:
                save_animation(images, batches, folder, config, pictures.num_columns)
            generate_batches(images, own_batches, files, images.action)
            seconds = {images.action: time.perf_counter() - started}
            numbers = measurement.measure()
            measurement.evaluator.seconds |= seconds
        except ValueError as error:
            raise UserError(str(error)) from error
        if config.save_png:
            pictures.save(folder)
        if config.save_noises:
            pictures.save_noises(batches, folder)
        files.finish(images.shape)
    return numbers


def main() -> None:
    entry.entry("edit", edit, keeps_status=True)


if __name__ == "__main__":
    main()
