"""Config of an evaluation + run folder -> the objects that measure it.

Torch and Lightning are imported inside functions: a refused config must not wait for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config_check import UserError, refuse, wrong_arguments
from diffusion_lab.runs import instantiated, resolved, saved_config, with_weights

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.evaluation import Evaluation

PARTS = ("time_grid", "clipping", "variance")
"""What a sampler is made of beside its own settings, each a group."""


@dataclass(frozen=True)
class EvaluationJob:
    """The objects of one evaluation, on the device and the processes that the config asks for."""

    evaluation: "Evaluation"
    metrics: list[Any]
    fabric: "Fabric"


def load_evaluation(config: DictConfig) -> EvaluationJob:
    """The run and the metrics that an evaluation's config names.  Raises UserError.

    A sampler, or a part of one, that the config names takes the place of the run's own.
    """
    if OmegaConf.is_missing(config, "run"):
        raise UserError("run must be the folder of a run (run=logs/train/...), got nothing.")
    folder = Path(str(config.run))
    trained = saved_config(folder, config.checkpoint)
    _put_in_place(trained, config)
    trained = resolved(trained)
    refuse([problem for key in ("sampler", "metrics") for problem in wrong_arguments(trained[key], key)])
    store = instantiated(trained.data.store, "data")
    from lightning import Fabric

    from diffusion_lab.evaluation import Evaluation
    from diffusion_lab.metrics.features import FeaturesUnavailableError

    module = with_weights(trained, folder / "checkpoints" / config.checkpoint)  # says so where the file is damaged
    _require_averages(config, folder / "checkpoints" / config.checkpoint)
    try:
        store.locate()
        metrics = [instantiated(node, f"metrics.{name}") for name, node in trained.metrics.items()]
    except (FileNotFoundError, FeaturesUnavailableError) as error:
        raise UserError(str(error)) from error
    layout = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    fabric = Fabric(**{key: config.trainer[key] for key in layout if key in config.trainer})
    fabric.launch()
    place = {"rank": fabric.global_rank, "world_size": fabric.world_size, "weights": config.weights}
    try:
        evaluation = Evaluation(
            module.to(fabric.device), store, config.seed, config.batch_size, trained.guidance_scale, **place
        )
        for metric in metrics:
            store.load(getattr(metric, "split", "train"))  # what is not there is said before hours of sampling
    except ValueError as error:
        raise UserError(str(error)) from error
    return EvaluationJob(evaluation, metrics, fabric)


def _require_averages(config: DictConfig, checkpoint: Path) -> None:
    """A reconstructed checkpoint holds one average under all names."""
    import torch

    if config.weights is not None and "reconstructed" in torch.load(
        checkpoint, map_location="cpu", weights_only=True, mmap=True
    ):
        raise UserError(
            f"weights must be left out for checkpoint={config.checkpoint}, which holds nothing but the reconstructed "
            f"average, got {config.weights}."
        )


def _put_in_place(trained: DictConfig, config: DictConfig) -> None:
    """Replaces the sampler of a trained run's config, or the parts of it, by what an evaluation names."""
    named = {part: config[part] for part in PARTS if part in config and config[part] is not None}
    for part, node in named.items():
        trained[part] = node
    if "_target_" in config.sampler:
        trained.sampler = config.sampler
    else:  # settings of the run's own sampler
        settings = {key: value for key, value in config.sampler.items() if value is not None}
        trained.sampler = {**trained.sampler, **settings, **{k: v for k, v in named.items() if k in trained.sampler}}
    trained.metrics = config.metrics
    if config.guidance_scale is not None:
        trained.guidance_scale = config.guidance_scale
