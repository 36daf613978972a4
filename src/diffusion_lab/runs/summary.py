"""The lines that a training run prints before its first step and at its end."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import OmegaConf

from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.checkpoint_files import LAST
from diffusion_lab.config.program import command_line
from diffusion_lab.data.classes import numbering
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.distributed.launch import describe_device
from diffusion_lab.evaluation.number import Number
from diffusion_lab.paths import CONF
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.reporting.text_tables import format_duration
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import portable_path, shell_word
from diffusion_lab.runs.metrics_log import CURVES, METRICS_LOG, read_log
from diffusion_lab.runs.results import earlier_ends
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.diffusion_module import DiffusionModule

LAST_VALUES = ("loss", "images_per_second")
"""Metrics whose last logged value counts if a resumed run has no steps left, and so logs none."""


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    distances: (step, value) of each measured Fréchet distance.  distance_name: its metric name; None if not measured.
    minutes: duration of all starts of the run.  seconds: duration of the last start.
    first_step: number of steps that were done before the last start.
    numbers: metric values of the last measurement, with their fingerprints.
    measuring_seconds: duration of all measurements since the last start.  is_resumed: whether it was not the first.
    accuracies: accuracies of a classifier, by name.
    unmeasured: the reason why a run of a diffusion model measured no distance; None if it measured one.
    sampler: name and number of steps of the sampler of evaluations; None for a run that generates no images.
    """

    steps: int
    loss: float | None
    images_per_second: float | None
    minutes: float
    seconds: float
    distance_name: str | None
    distances: tuple[tuple[int, float], ...]
    first_step: int = 0
    numbers: tuple[Number, ...] = ()
    measuring_seconds: float = 0.0
    is_resumed: bool = False
    accuracies: dict[str, float] = field(default_factory=dict)
    unmeasured: str | None = None
    sampler: str | None = None

    @property
    def objective(self) -> float | None:
        """The value that a search minimizes: the last metric value, or the loss if none was measured.

        A metric value has the opposite sign if a higher value is better.
        """
        return self.numbers[0].objective if self.numbers else self.loss

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
        parameters = list(module.network.parameters())
        num_parameters = sum(parameter.numel() for parameter in parameters)
        num_trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        frozen = f"{num_trained:,} of " if num_trained < num_parameters else ""
        print(
            f"training {frozen}{num_parameters:,} parameters of {_network(module)} on "
            f"{len(datamodule.train_images):,} images "
            f"for {trainer.max_steps:,} steps of {datamodule.batch_size} images "
            f"({trainer.max_steps * datamodule.batch_size / len(datamodule.train_images):,.1f} epochs), "
            f"{trainer.precision} on {_ranks(trainer)}{type(trainer.accelerator).__name__}; "
            + (f"resuming after step {first_step:,}; " if first_step else "")
            + f"run folder: {terminal_text(portable_path(folder))}",
            flush=True,
        )
        if module.num_classes and (names := datamodule.train_images.class_names):
            print(f"classes: {numbering(names, module.trained_classes)}", flush=True)
        device = describe_device(trainer.strategy.root_device, trainer.precision, trainer.world_size)
        print(f"device: {device}", flush=True)


def _ranks(trainer: Trainer) -> str:
    return f"{trainer.world_size} ranks of " if trainer.world_size > 1 else ""


def _network(module: TrainedModule) -> str:
    """Return the class of the network, and what it learns: "UNet (CosineSchedule, prediction V)"."""
    learned = [type(module.process.schedule).__name__]
    if isinstance(module, DiffusionModule):
        learned.append(f"prediction {type(module.prediction).__name__}")
    return f"{type(module.network).__name__} ({', '.join(learned)})"


def summarize(
    trainer: Trainer, folder: Path, *, seconds: float, first_step: int = 0, left_out: Mapping[str, str] | None = None
) -> Summary:
    """Return the result of a finished fit.

    folder: run folder.  first_step: number of steps that were done before the fit.  left_out: see `Run`.
    seconds: duration of the last start; used if the run has no status file, which also records the time before imports.
    """
    distances = next((c for c in trainer.callbacks if isinstance(c, MeasureDistance)), None)
    history = [*distances.history, *([distances.at_end] if distances.at_end else [])] if distances else []
    logged = [{name: line[name] for name in LAST_VALUES if name in line} for line in read_log(folder)]
    metrics = {name: value for line in logged for name, value in line.items()} | trainer.callback_metrics
    status = run_status.read(folder)
    if status is not None and status.starts:
        seconds = time.time() - status.starts[-1].began
    return Summary(
        steps=trainer.global_step,
        loss=float(metrics["loss"]) if "loss" in metrics else None,
        images_per_second=float(metrics["images_per_second"]) if "images_per_second" in metrics else None,
        minutes=run_status.total_minutes(folder) or seconds / 60,
        seconds=seconds,
        first_step=first_step,
        distance_name=distances.numbers[0].name if distances and distances.numbers else None,
        distances=tuple(history),
        numbers=tuple(distances.numbers) if distances else (),
        measuring_seconds=distances.seconds if distances else 0.0,
        is_resumed=status is not None and len(status.starts) > 1,
        accuracies={name: float(value) for name, value in metrics.items() if name.startswith("accuracy_")},
        unmeasured=None if history else _why_unmeasured(trainer, distances, left_out or {}),
        sampler=_describe_sampler(trainer.lightning_module),
    )


def _describe_sampler(module: Any) -> str | None:
    if not isinstance(module, DiffusionModule):
        return None
    return f"{type(module.sampler).__name__} with {len(module.sampler.times)} steps"


def _why_unmeasured(trainer: Trainer, distances: MeasureDistance | None, left_out: Mapping[str, str]) -> str | None:
    """Return the reason why a run measured no distance; None for a run that generates no images."""
    if not isinstance(trainer.lightning_module, DiffusionModule):
        return None
    if distances is not None:
        return "test runs (trainer=debug, trainer.fast_dev_run, trainer.detect_anomaly) measure nothing at their end"
    if "measure_distance" in left_out:
        return "its features are unavailable (see the note at the start)"
    return "callbacks.measure_distance=null"


def print_summary(summary: Summary, folder: Path, *, is_open_ended: bool) -> None:
    """Print a summary of the run.

    The summary contains the duration, the speed, the path of the last sample grid, the first and last value of the
    metric, and the commands that use the run.

    is_open_ended: whether the run can be resumed with more steps; otherwise a fork trains further.
    """
    path = shell_word(portable_path(folder))
    evaluate = f"{command_line('evaluate')} run={path}"
    if "features" in (summary.unmeasured or ""):
        evaluate += " features=efficientnet"
    num_samples = summary.numbers[0].fingerprint["num_samples"] if summary.numbers else None
    if num_samples not in (None, OmegaConf.load(CONF / "evaluate.yaml").num_samples):
        evaluate += f" num_samples={num_samples}"
    print(f"\ndone: {_steps_and_time(summary)}", end="")
    print(f", {summary.images_per_second:,.0f} images/s while training" if summary.images_per_second else "")
    for picture in sorted((folder / "samples").glob("*.png"))[-1:]:
        animation = picture.with_suffix(".webp")
        animated = f", animated in {animation.name}" if animation.is_file() else ""
        print(f"  samples     {terminal_text(portable_path(picture))}{animated}")
    earlier = earlier_ends(folder)[-1:]
    if summary.distances:
        ends = dict([summary.distances[0], *_ends_of(earlier, str(summary.distance_name)), summary.distances[-1]])
        values = ", ".join(f"{value:.2f} at step {step:,}" for step, value in sorted(ends.items()))
        print(f"  distance    {summary.distance_name}: {values} ({summary.numbers[0].description})")
        print(f"              {_protocol(summary)}")
        if summary.seconds:
            print(f"              {_measuring(summary)}")
    if summary.unmeasured is not None:
        print(f"  distance    not measured: {summary.unmeasured}; to measure it: {evaluate}")
    for name, value in summary.accuracies.items():
        values = "".join(f"{before:.3f} at step {step:,}, " for step, before in _ends_of(earlier, name))
        print(f"  {name}: {values}{value:.3f}" + f" at step {summary.steps:,}" * bool(values))
    if (folder / CURVES).is_file():
        print(f"  curves      {terminal_text(portable_path(folder / CURVES))}")
    print(f"  all metrics {terminal_text(portable_path(folder / METRICS_LOG))}")
    print("next:")
    further = f"resume={path}{'' if is_open_ended else ' fork=true'} trainer.max_steps={2 * summary.steps}"
    if summary.accuracies:
        print(f"  {command_line('sample')} run=logs/train/RUN classifier={path} classifier_scale=2")
        print(f"  {command_line('train_classifier')} {further}", flush=True)
        return
    print(f"  {command_line('sample')} run={path} num_images=64")
    print(f"  {evaluate}")
    print(f"  {command_line('train')} {further}", flush=True)


def _steps_and_time(summary: Summary) -> str:
    """Return the number of steps and their duration, for a resumed run and a fork also those of this command."""
    steps, whole = f"{summary.steps:,} steps", format_duration(60 * summary.minutes)
    if not summary.first_step:
        return f"{steps} in {whole}"
    own = f"({summary.steps - summary.first_step:,} of them by this command, after step {summary.first_step:,}, in"
    own = f"{own} {format_duration(summary.seconds)})"
    return f"{steps} in {whole} {own}" if summary.is_resumed else f"{steps} {own}"  # the time of a fork is its own


def _measuring(summary: Summary) -> str:
    """Return the duration of the measurements since the last start, and its fraction of the duration of this start."""
    resumed = " since the run was resumed" if summary.is_resumed else ""
    fraction = summary.measuring_seconds / summary.seconds
    whole = format_duration(summary.seconds)
    return f"measuring took {summary.measuring_seconds:.1f} s of the {whole}{resumed} ({fraction:.0%})"


def _ends_of(earlier: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric at the earlier ends of a run."""
    return [(end["steps"], end[name]) for end in earlier if end.get(name) is not None]


def _protocol(summary: Summary) -> str:
    """Return how the last distance was measured, and how evaluations differ."""
    fingerprint = summary.numbers[0].fingerprint
    sampler, precision = fingerprint["sampler"], fingerprint["precision"]
    measured = f"{sampler['name']} with {sampler['num_steps']} steps in {precision}"
    evaluated = f"{summary.sampler} in 32-true"
    return f"measured with {measured}" + (f"; evaluate uses {evaluated}" if measured != evaluated else "")


def print_how_to_resume(folder: Path, step: int, command: str) -> None:
    """Print the last saved step of a run that was stopped, and the command that resumes it."""
    saved = f"after step {step:,}" if step else "before the first step"
    path = shell_word(portable_path(folder))
    print(f"stopped {saved}; to resume: {command_line(command)} resume={path}", file=sys.stderr, flush=True)
