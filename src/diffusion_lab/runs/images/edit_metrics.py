"""Metrics of an edit: config -> the metrics of the results of each source, and those of the set of all results.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import resource
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import compilation
from diffusion_lab.config.library_classes import import_target
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs import results as run_results
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.cost.sampling import num_evaluations
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, resolve
from diffusion_lab.runs.setup.evaluation import build_metrics, measured_config, user_errors
from diffusion_lab.runs.setup.reference import SampleFormat, build_reference

if TYPE_CHECKING:
    from diffusion_lab.evaluation.edit_evaluator import EditEvaluator
    from diffusion_lab.evaluation.evaluator import Evaluator
    from diffusion_lab.evaluation.number import Number
    from diffusion_lab.generation.edited_images import EditedImages
    from diffusion_lab.generation.frame_images import FrameImages
    from diffusion_lab.metrics import EditMetric, Metric


@dataclass(frozen=True)
class EditMeasurement:
    """The objects for the evaluation of an edit.

    evaluator, metrics: evaluator of the results of each source, and its metrics.
    of_set, set_metrics: evaluator of the set of all results, and its metrics, such as FID; None without such metrics.
    """

    evaluator: "EditEvaluator"
    metrics: list["EditMetric"]
    of_set: "Evaluator | None"
    set_metrics: list["Metric"]

    def measure(self) -> list["Number"]:
        """Return the values of all metrics. Collective: call on all ranks, after the results are generated."""
        numbers = self.evaluator.measure(self.metrics) if self.metrics else []
        if self.of_set is None:
            return numbers
        seed = {"seed": self.evaluator.images.seed}  # the evaluator counts the results from 0
        of_set = self.of_set.measure(self.set_metrics)
        return [*numbers, *(replace(number, fingerprint=number.fingerprint | seed) for number in of_set)]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part of the evaluation."""
        return ({} if self.of_set is None else self.of_set.seconds) | self.evaluator.seconds


def build_measurement(config: DictConfig, target: Target, images: "EditedImages") -> EditMeasurement:
    """Return the metrics of a config for the results of an edit.

    Raises UserError if a metric cannot be computed for the results, or if the features or the reference are missing.
    """
    from diffusion_lab.evaluation.edit_evaluator import EditEvaluator
    from diffusion_lab.evaluation.evaluator import Evaluator
    from diffusion_lab.metrics import EditMetric, MeanOverImages

    targets = {str(name): import_target(str(node._target_)) for name, node in config.metrics.items()}
    if means := [name for name, kind in targets.items() if kind is MeanOverImages]:
        raise UserError(f"metrics must measure images for an edit, as psnr and fid do, got {means[0]}.")
    trained = measured_config(config, target)
    trained = resolve(OmegaConf.masked_copy(trained, ["metrics", "features", "data"]))
    raise_problems(list(argument_problems(trained.metrics, "metrics")))
    of_set = [name for name, kind in targets.items() if not issubclass(kind, EditMetric)]
    precision = compilation.precision_name(config.trainer)
    evaluator, set_evaluator = EditEvaluator(images, precision), None
    with user_errors(config):
        metrics = evaluator.chosen(_edit_metrics(trained, [name for name in targets if name not in of_set]))
        trained.metrics = OmegaConf.masked_copy(trained.metrics, of_set)
        store = instantiate_node(trained.data.store, "data")
        set_metrics, _ = build_metrics(trained, None)
        if set_metrics:
            needs_reference = any(metric.needs_reference for metric in set_metrics)
            sample_format = SampleFormat(images.shape[0], images.shape[-1])
            reference = build_reference(config.reference, store, sample_format) if needs_reference else None
            set_evaluator = Evaluator(images, reference, images.num_images, precision=precision)
            set_evaluator.require(set_metrics)
    return EditMeasurement(evaluator, metrics, set_evaluator, set_metrics)


def _edit_metrics(trained: DictConfig, names: list[str]) -> list["EditMetric"]:
    """Return the metrics of the results of each source, which share one feature network."""
    built: dict[str, Any] = {}
    metrics = []
    for name in names:
        node = dict(trained.metrics[name])
        if (features := node.pop("features", None)) is not None:
            key = OmegaConf.to_yaml(features)
            built[key] = built.get(key) or instantiate_node(features, "features")
            node["features"] = built[key]
        metrics.append(instantiate_node({"_target_": node.pop("_target_")}, f"metrics.{name}", **node))
    return metrics


def write_results(
    numbers: list["Number"],
    images: "EditedImages | FrameImages",
    seconds: dict[str, float],
    target: Target,
    step: int,
    folder: Path,
) -> None:
    """Write and print the metric values of an edit.  seconds: seconds by part of the evaluation."""
    record = {
        "job": HydraConfig.get().runtime.output_dir,
        "run": str(target.folder),
        "checkpoint": target.checkpoint.name,
        "step": step,
        "evaluations": num_evaluations(images),
        "numbers": [asdict(number) for number in numbers],
        "seconds": seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    run_results.write_metrics(folder, record)
    minutes = run_status.total_minutes(folder) or sum(seconds.values()) / 60
    run_results.write_summary(folder, {number.name: number.value for number in numbers} | {"minutes": minutes})
    run_results.print_numbers(record)
