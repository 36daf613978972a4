"""Preparation of a run folder before the first training step: the files that are needed to load or resume the run."""

import json
import logging
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.library_classes import without_plus
from diffusion_lab.config.overrides import given_overrides
from diffusion_lab.config.search_path import search_path_overrides
from diffusion_lab.config.secrets import secret_keys, without_secrets
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.runs import class_names
from diffusion_lab.runs.load import resolved_values
from diffusion_lab.runs.resume import StartingPoint
from diffusion_lab.runs.settings.typed_paths import write_overrides
from diffusion_lab.runs.setup.training import Run
from diffusion_lab.runs.trust import is_recorded, record

logger = logging.getLogger(__name__)


def prepare(run: Run, start: StartingPoint) -> StartingPoint:
    """Prepare the folder of a run, and return the state from which the run starts.

    Rank 0 starts the loggers, and writes the config and the overrides. For a fork, rank 0 also copies the checkpoint of
    the original run into the folder of the fork, which then starts from this copy. The step is that of the copy, since
    the original run may be in training and save a newer checkpoint at any time.
    """
    is_fork = start.checkpoint is not None and not start.continues
    checkpoint, step = run.folder / "checkpoints" / "last.ckpt" if is_fork else start.checkpoint, start.step
    if run.trainer.is_global_zero:
        _start_loggers(run.trainer.loggers, start)
        _save_config(start.config, run.folder)
        if run.initialization is not None:
            run.initialization.write(run.folder)
        class_names.save(run.datamodule.train_images.class_names, run.folder)
        class_names.save_trained(sorted(set(run.datamodule.train_images.label.tolist())), run.folder)
        save_overrides(run.folder)
        record(run.folder)
        _save_environment(start.config, run.folder)
        if is_fork and start.checkpoint is not None and checkpoint is not None:
            step = _copy_checkpoint_to_fork(start.checkpoint, checkpoint)
    return replace(start, checkpoint=checkpoint, step=step)


@contextmanager
def saved_on_signal(config: DictConfig) -> Iterator[None]:
    """Save the config and the overrides of a new run that a signal stops inside the context, so that it can be resumed.

    A fork cannot be resumed before it has a copy of the checkpoint from which it starts.
    """
    try:
        yield
    except StoppedBySignal:
        folder = Path(config.run_folder)
        if slurm_job.rank() == 0 and not config.resume and not (folder / "config.yaml").exists():
            _save_config(config, folder)
            save_overrides(folder)
            record(folder)
        raise


def _start_loggers(loggers: list[Any], start: StartingPoint) -> None:
    """Start the loggers of a run, which continue after the steps that are already done."""
    config, num_steps = start.config, start.step if start.continues else 0
    interval = 1 if start.is_trained else config.trainer.get("log_every_n_steps") or 1  # 1 keeps the loss of the end
    for each in loggers:
        if hasattr(each, "continue_after"):
            each.continue_after(num_steps, interval)
        try:
            _ = each.experiment
            if hasattr(each, "describe"):
                each.describe(without_secrets(resolved_values(config)))
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"logger.wandb: {reason} (logger.wandb.offline=true needs no account).") from error


def _save_config(config: DictConfig, folder: Path) -> None:
    content = resolved_values(config)
    if hidden := list(secret_keys(content)):
        logger.info("config.yaml has null for the value of a secret environment variable at %s.", ", ".join(hidden))
    with atomic_file(folder / "config.yaml") as partial:
        OmegaConf.save(OmegaConf.create(without_secrets(content)), partial)


def _save_environment(config: DictConfig, folder: Path) -> None:
    """Write the versions of Python and of all packages whose classes the config names, and the config folders."""
    names = sorted({"lightning", "torch", *_packages(resolved_values(config))})
    packages = {name: _describe_package(name) for name in names}
    content = {"python": platform.python_version(), "packages": packages, "search_path": search_path_overrides()}
    with atomic_file(folder / "environment.json") as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def _packages(node: Any) -> Iterator[str]:
    """Yield the top-level package of every `_target_` in a node."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _packages(child)
    if isinstance(node, dict) and "_target_" in node:
        yield str(node["_target_"]).partition(".")[0]


def _describe_package(name: str) -> dict[str, str | None]:
    """Return the version of an imported package and the folder that it was imported from."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    return {"version": getattr(module, "__version__", None), "folder": str(Path(file).parent) if file else None}


def _copy_checkpoint_to_fork(source: Path, target: Path) -> int:
    """Copy a checkpoint into the folder of a fork, and return its step.

    The copy has no callback states, which belong to the original run, and no record of the meaning of the weights,
    because a fork may change the settings that define it.
    """
    from diffusion_lab import checkpoint_files
    from diffusion_lab.training.base_module import MEANING_KEY

    content = checkpoint_files.read_run(source)
    checkpoint_files.write(content | {"callbacks": {}, MEANING_KEY: {}}, target)
    return int(content["global_step"])


def save_overrides(folder: Path) -> None:
    """Save all overrides of a run, so that the run can be resumed.

    The overrides file that Hydra writes contains only the overrides of the latest command.
    """
    if slurm_job.rank() == 0:
        was_recorded, given = is_recorded(folder), given_overrides()
        overrides = [
            without_plus(override) for override in given if not re.match(r"\+*(resume|fork|take_over)=", override)
        ]
        write_overrides([*overrides, *search_path_overrides()], folder)
        if was_recorded:
            record(folder)
