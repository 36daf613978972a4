"""The lines that a training run prints before its first step and at its end."""

import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.checkpoint_files import LAST
from diffusion_lab.config.program import command_line
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.distributed.launch import describe_device
from diffusion_lab.evaluation.evaluator import Number
from diffusion_lab.training.base_module import TrainedModule


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    distances: (step, value) of each measured Fréchet distance.  distance_name: its metric name; None if not measured.
    numbers: metric values of the last measurement, with their fingerprints.
    measuring_seconds: duration of all measurements.  accuracies: accuracies of a classifier, by name.
    """

    steps: int
    loss: float | None
    images_per_second: float | None
    minutes: float
    distance_name: str | None
    distances: tuple[tuple[int, float], ...]
    numbers: tuple[Number, ...] = ()
    measuring_seconds: float = 0.0
    accuracies: dict[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> float | None:
        """The value that a search minimizes: the last Fréchet distance, or the loss if no distance was measured."""
        return self.distances[-1][1] if self.distances else self.loss

    def as_dict(self) -> dict[str, Any]:
        """Return the content of summary.json, with the last Fréchet distance under `distance_name`."""
        content: dict[str, Any] = {"steps": self.steps, "loss": self.loss}
        if self.distances:
            content[str(self.distance_name)] = self.distances[-1][1]
        content |= self.accuracies
        return {**content, "images_per_second": self.images_per_second, "minutes": self.minutes}

    def record(self, folder: Path) -> dict[str, Any]:
        """Return the content of metrics.json, in the format of evaluations."""
        return {
            "run": str(folder),
            "checkpoint": LAST,
            "step": self.steps,
            "numbers": [asdict(number) for number in self.numbers],
            "seconds": {"measuring": self.measuring_seconds},
        }


def print_start(
    module: TrainedModule, datamodule: ImageDataModule, trainer: Trainer, folder: Path, first_step: int = 0
) -> None:
    """Print two lines on rank 0: network size, data, number of steps, run folder; and how to change the device.

    first_step: number of steps that are already done.
    """
    if trainer.is_global_zero:
        num_parameters = sum(parameter.numel() for parameter in module.network.parameters())
        print(
            f"training {num_parameters:,} parameters on {len(datamodule.train_images):,} images for "
            f"{trainer.max_steps:,} steps of {datamodule.batch_size} images "
            f"({trainer.max_steps * datamodule.batch_size / len(datamodule.train_images):,.1f} epochs), "
            f"{trainer.precision} on {type(trainer.accelerator).__name__}; "
            + (f"resuming after step {first_step:,}; " if first_step else "")
            + f"run folder: {short_path(folder)}",
            flush=True,
        )
        print(f"device: {describe_device(trainer.strategy.root_device, trainer.precision)}", flush=True)


def summarize(trainer: Trainer, *, minutes: float) -> Summary:
    """Return the result of a finished fit."""
    distances = next((c for c in trainer.callbacks if isinstance(c, MeasureDistance)), None)
    metrics = trainer.callback_metrics
    return Summary(
        steps=trainer.global_step,
        loss=float(metrics["loss"]) if "loss" in metrics else None,
        images_per_second=float(metrics["images_per_second"]) if "images_per_second" in metrics else None,
        minutes=minutes,
        distance_name=distances.numbers[0].name if distances and distances.numbers else None,
        distances=tuple(distances.history) if distances else (),
        numbers=tuple(distances.numbers) if distances else (),
        measuring_seconds=distances.seconds if distances else 0.0,
        accuracies={name: float(value) for name, value in metrics.items() if name.startswith("accuracy_")},
    )


def print_summary(summary: Summary, folder: Path) -> None:
    """Print a summary of the run.

    The summary contains the duration, the speed, the path of the last sample grid, the first and last Fréchet distance,
    and commands to try next.
    """
    print(f"\ndone: {summary.steps:,} steps in {summary.minutes:.1f} minutes", end="")
    print(f", {summary.images_per_second:,.0f} images/s while training" if summary.images_per_second else "")
    for picture in sorted((folder / "samples").glob("*.png"))[-1:]:
        print(f"  samples     {short_path(picture)}, animated in {picture.with_suffix('.webp').name}")
    if summary.distances:
        ends = dict([summary.distances[0], summary.distances[-1]])
        print(f"  distance    {summary.distance_name}: " + ", ".join(f"{v:.2f} at step {k:,}" for k, v in ends.items()))
        if summary.minutes:
            fraction = summary.measuring_seconds / 60 / summary.minutes
            print(f"              measuring took {summary.measuring_seconds:.0f} s, {fraction:.0%} of the run")
    for name, value in summary.accuracies.items():
        print(f"  {name}: {value:.3f}")
    print(f"  all metrics {short_path(folder / 'metrics.csv')}")
    print("try next:")
    if summary.accuracies:
        print(
            f"  {command_line('sample')} run=logs/train/RUN classifier={shell_word(short_path(folder))} "
            "classifier_scale=2",
            flush=True,
        )
        return
    print(f"  {command_line('train')} schedule=cosine data=cifar10")
    print(f"  {command_line('train')} -m schedule=linear,cosine model=unet_tiny,unet_small", flush=True)


def print_how_to_resume(folder: Path, step: int, command: str) -> None:
    """Print the last saved step of a run that was stopped, and the command that resumes it."""
    saved = f"after step {step:,}" if step else "before the first step"
    path = shell_word(short_path(folder))
    print(f"stopped {saved}; to resume: {command_line(command)} resume={path}", file=sys.stderr, flush=True)


def shell_word(path: str) -> str:
    """Return a path quoted for the shell and for Hydra, if it needs quotes."""
    return path if re.fullmatch(r"[\w./+-]+", path) else f"'\"{path}\"'"


def short_path(path: Path) -> str:
    """Return a path below the working directory relative to it, and other paths unchanged."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
