"""What a run is about to do, and what it came to, in a few lines on the terminal."""

import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.checkpoint_files import LAST
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.evaluation.evaluator import Number
from diffusion_lab.training.base_module import TrainedModule


@dataclass(frozen=True)
class Summary:
    """A run's result.

    distances: (step, value) of each measurement under distance_name, None where none was taken.
    numbers: all of the last one, with their protocol.  measuring_seconds: spent on all of them.
    accuracies: of a classifier, by their names.
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
        return self.distances[-1][1] if self.distances else self.loss

    def as_dict(self) -> dict[str, Any]:
        """Flat names and numbers; the distance stands under its own name."""
        content: dict[str, Any] = {"steps": self.steps, "loss": self.loss}
        if self.distances:
            content[str(self.distance_name)] = self.distances[-1][1]
        content |= self.accuracies
        return {**content, "images_per_second": self.images_per_second, "minutes": self.minutes}

    def record(self, folder: Path) -> dict[str, Any]:
        """The measured numbers with their protocol, as evaluations write them."""
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
    """One line before the first step: what is trained, on what, from which step on, where it goes."""
    if trainer.is_global_zero:
        size = sum(parameter.numel() for parameter in module.network.parameters())
        print(
            f"training {size:,} parameters on {len(datamodule.train_images):,} images, {trainer.max_steps:,} steps of "
            f"{datamodule.batch_size}, {trainer.precision} on {type(trainer.accelerator).__name__}; "
            + (f"{first_step:,} of them are done; " if first_step else "")
            + f"everything goes to {short_path(folder)}",
            flush=True,
        )


def summarize(trainer: Trainer, *, minutes: float) -> Summary:
    """The result of a finished fit."""
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
    """Where the pictures are, how far training came, how fast it was, and what to try next."""
    print(f"\ndone: {summary.steps:,} steps in {summary.minutes:.1f} minutes", end="")
    print(f", {summary.images_per_second:,.0f} images/s while training" if summary.images_per_second else "")
    for picture in sorted((folder / "samples").glob("*.png"))[-1:]:
        print(f"  pictures    {short_path(picture)} and the animation {picture.with_suffix('.webp').name} beside it")
    if summary.distances:
        ends = dict([summary.distances[0], summary.distances[-1]])
        print(f"  distance    {summary.distance_name}: " + ", ".join(f"{v:.2f} at step {k:,}" for k, v in ends.items()))
        if summary.minutes:
            share = summary.measuring_seconds / 60 / summary.minutes
            print(f"              measuring took {summary.measuring_seconds:.0f} s, {share:.0%} of the run")
    for name, value in summary.accuracies.items():
        print(f"  {name}: {value:.3f}")
    print(f"  all numbers {short_path(folder / 'metrics.csv')}")
    print("try next:")
    if summary.accuracies:
        print(
            f"  python src/sample.py run=logs/train/RUN classifier={shell_word(short_path(folder))} classifier_scale=2",
            flush=True,
        )
        return
    print("  python src/train.py schedule=cosine data=cifar10")
    print("  python src/train.py -m schedule=linear,cosine model=unet_tiny,unet_small", flush=True)


def print_how_to_resume(folder: Path, step: int, command: str) -> None:
    """What was kept of a run that ended early, and the command that goes on with it."""
    where = short_path(folder)
    kept = f"{step:,} steps are kept" if step else "no step was done"
    print(f"stopped: {kept}; to go on: python src/{command}.py resume={shell_word(where)}", file=sys.stderr, flush=True)


def shell_word(path: str) -> str:
    """A path as the shell and Hydra take it."""
    return path if re.fullmatch(r"[\w./+-]+", path) else f"'\"{path}\"'"


def short_path(path: Path) -> str:
    """A path as short as it can be from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
