"""Evaluate trained runs, or images of other models: the FID and other metrics, and bits per dimension.

python src/evaluate.py run=logs/train/RUN                                           # Frechet distance
python src/evaluate.py run=logs/train/RUN 'metrics=[fid,kid,is,precision_recall,nll]' num_samples=50000
python src/evaluate.py 'run=logs/train/*' sampler=ddim sampler.num_steps=50         # a table with a row per run
python src/evaluate.py -m run=logs/train/RUN sampler=ddim,ancestral sampler.num_steps=10,50   # a row per sampler
torchrun --nproc-per-node 8 src/evaluate.py run=logs/train/RUN trainer=ddp          # on eight GPUs
python src/evaluate.py images=FOLDER data=cifar10 'metrics=[fid,kid]'               # images of unknown origin
python src/evaluate.py 'images=[A,B.npz,C.zip]' reference=FOLDER                    # a table with a row per set
python src/evaluate.py data=cifar10 save_statistics=cifar10.npz                     # statistics of a reference

Results: logs/evaluate/<date>_<time> contains metrics.json, with the settings of each value, and a grid of samples.
Resuming: the same command generates only the batches that an interrupted command did not finish.
"""

import resource
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffusion_lab.commands import entry
from diffusion_lab.config.compose import in_sweep
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import allowed_fields
from diffusion_lab.reporting.text import file_name_with, terminal_text
from diffusion_lab.runs import results as run_results
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import Target, find_targets
from diffusion_lab.runs.images.job import image_job
from diffusion_lab.runs.setup import evaluation as evaluation_setup
from diffusion_lab.runs.setup import image_evaluation
from diffusion_lab.runs.setup import sampling as sampling_setup
from diffusion_lab.runs.setup.image_sets import find_image_sets, with_data_of_run
from diffusion_lab.runs.tables.comparable import write_and_print_table

if TYPE_CHECKING:
    from diffusion_lab.evaluation.number import Number
    from diffusion_lab.runs.setup.evaluation import Measurement


NUM_PICTURES = 80
"""Default number of images in the grid of an evaluation that generates samples."""


def evaluate(config: DictConfig) -> float | None:
    """Measure the selected checkpoints: denoiser -> sampler -> images -> metrics.

    Returns the value that a search minimizes: the first metric value of the first checkpoint, with the opposite sign if
    a higher value is better, or None if no metric is measured.
    """
    sampling_setup.require_whole_numbers(config)
    allowed = allowed_fields(config.allow)
    if config.save_statistics is not None:
        _save_statistics(config)
        return None
    if config.run is None and config.images is None:
        raise UserError(
            "`run` or `images` must be given: run=RUN measures the images that a trained network generates, "
            "images=FOLDER the images in a folder or an archive."
        )
    sets = [] if config.images is None else find_image_sets(config)
    targets = [] if sets else find_targets(with_data_of_run(config))
    sampling_setup.require_loadable(config, targets)
    fabric = sampling_setup.launch_fabric(config)
    of_images = image_evaluation.build_each(config, sets, fabric)
    measurements = of_images if sets else evaluation_setup.build_each(config, targets, fabric)
    num_targets, kind = len(sets) or len(targets), "images" if sets else "run"
    output, results = Path(config.output_folder), []
    for number, measurement in enumerate(measurements):
        folder = output if num_targets == 1 else output / file_name_with(f"{number}_", measurement.target.name)
        with fabric.autocast():
            results.append(_measure(measurement, config, folder))
        if fabric.is_global_zero:
            _write_results(results[-1], measurement, folder, is_one_of_many=in_sweep() or num_targets > 1)
    if num_targets > 1 and fabric.is_global_zero:
        write_and_print_table([output], output, "images" if sets else "runs", swept=[kind], allowed=allowed)
    return results[0][0].objective if results[0] else None


def _save_statistics(config: DictConfig) -> None:
    fabric = sampling_setup.launch_fabric(config)
    path = image_evaluation.save_statistics(config, fabric)
    if fabric.is_global_zero:
        print(f"the statistics of reference={config.reference} are in {terminal_text(path)}", flush=True)


def _measure(measurement: "Measurement", config: DictConfig, folder: Path) -> list["Number"]:
    """Return all metric values of a checkpoint, and write the generated images to the folder.

    Generated batches are cached on the disk until all metrics are measured.
    """
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.runs.cost.measuring import print_measuring_cost
    from diffusion_lab.runs.images.near_pairs import write_near_pairs

    evaluation, images = measurement.evaluation, measurement.evaluation.images
    if not isinstance(images, SeededImages):
        print_measuring_cost(measurement, str(config.trainer.precision))
        with evaluation_setup.user_errors(config):
            numbers = evaluation.measure(measurement.metrics)
        write_near_pairs(evaluation, folder)
        return numbers
    assert isinstance(measurement.target, Target)
    assert measurement.step is not None
    needs_samples = bool(measurement.metrics) or config.save_npz or config.save_png
    if config.num_pictures is None:
        config.num_pictures = NUM_PICTURES if needs_samples else 0
    num_images = config.num_samples if needs_samples else config.num_pictures
    seeds = [range(config.seed, config.seed + num_images)]
    with image_job(config, images, measurement.target, measurement.step, seeds, folder) as files:
        print_measuring_cost(measurement, str(config.trainer.precision))
        try:
            if needs_samples:
                numbers = evaluation.measure(measurement.metrics, files.add)
            else:  # metrics that are means over images of the data set need no samples
                numbers = []
                evaluation.generate(config.num_pictures, files.add)
            numbers += [evaluation.mean(metric, data) for metric, data in measurement.means]
        except ValueError as error:
            raise UserError(str(error)) from error
        write_near_pairs(evaluation, folder)
        files.finish(images.shape)
    return numbers


def _write_results(numbers: list["Number"], measurement: "Measurement", folder: Path, *, is_one_of_many: bool) -> None:
    """Write and print the results; in one line if a table with the results of all evaluations follows."""
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.reporting import plots
    from diffusion_lab.runs.cost.sampling import num_evaluations

    folder.mkdir(parents=True, exist_ok=True)
    for metric, _ in measurement.means:
        if (steps := getattr(metric.quantity, "steps", None)) is not None:
            plots.save_bound(metric.terms.tolist(), steps.tolist(), folder / f"{metric.name}.csv")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    images = measurement.evaluation.images
    record = {
        "job": HydraConfig.get().runtime.output_dir,
        "run": str(measurement.target.folder),
        "checkpoint": None if measurement.target.checkpoint is None else measurement.target.checkpoint.name,
        "step": measurement.step,
        "evaluations": num_evaluations(images) if measurement.metrics and isinstance(images, SeededImages) else None,
        "numbers": [asdict(number) for number in numbers],
        "seconds": measurement.evaluation.seconds,
        "peak_memory_gb": peak,
    }
    run_results.write_metrics(folder, record)
    minutes = run_status.total_minutes(folder) or sum(measurement.evaluation.seconds.values()) / 60
    run_results.write_summary(folder, {number.name: number.value for number in numbers} | {"minutes": minutes})
    if is_one_of_many:
        run_results.print_line(record)
        return
    run_results.print_numbers(record)
    print(f"results are in {terminal_text(folder)}", flush=True)


def main() -> None:
    entry.entry("evaluate", evaluate, keeps_status=True)


if __name__ == "__main__":
    main()
