"""Measures a trained run: the distance of its samples to the data, bits per dimension.

python src/evaluate.py run=logs/train/RUN
python src/evaluate.py run=logs/train/RUN sampler=ddim sampler.num_steps=10
python src/evaluate.py run=logs/train/RUN 'metrics=[bound,flow]'
"""

import time
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab import config_entry, run_evaluations, run_tables


def evaluate(config: DictConfig) -> float:
    """Run folder -> averaged denoiser -> sampler -> table of metrics.  Returns the first number."""
    job = run_evaluations.load_evaluation(config)
    started = time.monotonic()
    with job.fabric.autocast():
        numbers = [job.evaluation.measure(metric) for metric in job.metrics]
        if job.fabric.is_global_zero:
            _write(job, config, dict(zip((metric.name for metric in job.metrics), numbers, strict=True)), started)
    return numbers[0]


def _write(job: run_evaluations.EvaluationJob, config: DictConfig, numbers: dict[str, float], started: float) -> None:
    from diffusion_lab import pictures, plots

    folder = Path(config.output_folder)
    for metric in job.metrics:
        if hasattr(metric, "terms") and len(metric.terms) > 1:
            plots.save_bound(metric.terms.tolist(), metric.quantity.steps.tolist(), folder / f"{metric.name}.csv")
    if config.num_pictures:
        images = job.evaluation.pictures(config.num_pictures)
        pictures.save_picture(pictures.grid(images, num_columns=8), folder / "samples.png")
    run_tables.write_summary(folder, {**numbers, "minutes": (time.monotonic() - started) / 60})
    for name, number in numbers.items():
        print(f"{name}  {number:.4f}")
    print(f"everything is in {folder}", flush=True)


if __name__ == "__main__":
    config_entry.entry("evaluate", evaluate)
