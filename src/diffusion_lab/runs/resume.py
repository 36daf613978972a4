"""Resuming of runs: the config comes from the run folder, the state comes from the newest readable checkpoint.

resume=RUN continues a run in its own folder. resume=RUN fork=true starts a new run in another folder from the state of
RUN; the settings of the new run may be different.
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.accepted_targets import foreign_targets
from diffusion_lab.config.compose import command_name, compose_config
from diffusion_lab.config.earlier_versions import current_config
from diffusion_lab.config.library_classes import without_plus
from diffusion_lab.config.overrides import given_overrides, override_key, quote, unquote
from diffusion_lab.config.program import command_line
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.config.search_path import KEY as SEARCH_PATH
from diffusion_lab.config.search_path import gives_search_path, search_path_overrides
from diffusion_lab.config.secrets import is_secret
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs import imported_run, unrecorded
from diffusion_lab.runs.find import Place, find_place, portable_path, run_of, shell_word
from diffusion_lab.runs.load import resolve, resolved_values
from diffusion_lab.runs.settings import changes as config_changes
from diffusion_lab.runs.settings.changes import KeyPath, by_choice, changes_with_effect, flatten, relocate, unflatten
from diffusion_lab.runs.settings.typed_paths import make_absolute, read_overrides
from diffusion_lab.runs.settings.used import UsedSettings
from diffusion_lab.runs.setup import fine_tuning
from diffusion_lab.runs.setup.trainer_settings import require_more_steps
from diffusion_lab.runs.setup.training import Run
from diffusion_lab.runs.supervise import RefusedError
from diffusion_lab.runs.tables.table import SUMMARY, read_json
from diffusion_lab.runs.trust import is_recorded, require_trusted
from diffusion_lab.runs.unrecorded import kept_overrides, parts_of_run, print_left_out, require_plain_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """The config of a run and the state from which it starts.

    checkpoint: file with this state; None for a new run.  step: number of steps that are already done.
    continues: whether the run continues in its own folder, in contrast to a new run or a fork.
    """

    config: DictConfig
    checkpoint: Path | None = None
    step: int = 0
    continues: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether all steps are done."""
        max_steps = self.config.trainer.max_steps
        return self.continues and isinstance(max_steps, int) and 0 < max_steps <= self.step

    @property
    def is_done(self) -> bool:
        """Whether all steps are done and the results are written, which a kill in the last measurement prevents."""
        return self.is_trained and read_json(Path(self.config.run_folder) / SUMMARY).get("steps") == self.step


def restore_command_line(command: str) -> None:
    """Put the saved overrides of a resumed run before the given overrides in sys.argv, and set the run folder.

    Hydra then composes the config of the run with the given changes.
    Raises UserError if the run is not found, if the command is a sweep, or if hydra.run.dir is given without fork=true.
    """
    arguments = sys.argv[1:]
    matches = (re.fullmatch(r"\+*resume=(.*)", argument) for argument in arguments)
    resumed = [match[1] for match in matches if match and match[1] != "null"]
    if not resumed or os.environ.get("DIFFUSION_LAB_RESUMED") == resumed[-1]:
        return
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise UserError(
            f"resume=... must be used without --multirun, got a sweep with resume={resumed[-1]}; the command that "
            "started a sweep also continues it."
        )
    folder, checkpoint = imported_run.trained_here(find_place("resume", unquote(resumed[-1]), run_of(command)))
    given = [argument for argument in arguments if override_key(argument) != "resume"]
    fine_tuning.require_no_init(given)
    given_keys = {override_key(argument) for argument in given}
    lengths = {"trainer.max_steps", "trainer.max_epochs"}
    replaced = given_keys | (lengths if given_keys & lengths else set())
    replaced |= {SEARCH_PATH} if gives_search_path(arguments) else set()
    # An override that adds a setting (+a.b=1) remains, so that another override can change the setting.
    remaining = [
        override
        for override in _saved_overrides(folder)
        if override_key(override) not in replaced or re.match(r"\+[^=]*\.", override)
    ]
    if not is_recorded(folder):
        print_left_out(folder, read_overrides(folder))
    resume = quote(str(checkpoint or folder))
    sys.argv[1:] = [*remaining, *given, f"resume={resume}"]
    if not any(re.fullmatch(r"\+*fork=true", argument, re.IGNORECASE) for argument in given):
        if "hydra.run.dir" in given_keys:
            raise UserError("hydra.run.dir is accepted only with fork=true: resume continues in the run's folder.")
        if checkpoint is not None and checkpoint.name != "last.ckpt":
            raise UserError(
                f"resume={resume} must be last.ckpt or a run folder without fork=true, because a run continues from "
                "its newest checkpoint; fork=true starts a new run from this checkpoint."
            )
        sys.argv += [f"hydra.run.dir={quote(str(folder))}", "hydra.output_subdir=null"]
    # Child processes inherit the restored command line.
    os.environ["DIFFUSION_LAB_RESUMED"] = resume


def starting_point(config: DictConfig) -> StartingPoint:
    """Return the starting point of the run that the command line describes.

    A run whose folder already has a config is resumed, for example after it was killed or in a requeued job.
    Raises UserError if changed settings would change the result of the remaining steps.
    """
    if not isinstance(config.fork, bool):
        raise UserError(f"fork must be true or false, got {config.fork}.")
    if config.fork and not config.resume:
        raise UserError("`resume` must be given with fork=true, because a fork starts from the state of a run.")
    run_folder = Path(config.run_folder)
    exists = (run_folder / "config.yaml").is_file()
    if not config.resume and not exists:
        make_absolute(config)
        return StartingPoint(config)
    is_fork = config.fork and not exists  # a requeued fork continues in its own folder
    is_other = config.resume and not exists
    source = find_place("resume", config.resume, run_of(command_name())) if is_other else Place(run_folder)
    source = imported_run.trained_here(source)
    if not is_fork and not is_recorded(run_folder):
        require_plain_folder(run_folder)
    saved, wanted = _merge_changes(config, source.folder, run_folder)
    if not is_fork and (changes := changes_with_effect(saved, wanted)):
        _require_arguments(config)  # a setting that does not exist is no change
        other_length = saved.get(("trainer", "max_steps")) != config.trainer.max_steps
        if config.resume and other_length:  # the fork that is recommended next would be refused
            require_more_steps(config, _starting_checkpoint(source)[1])
        reason = config_changes.reason_of(changes, other_length=other_length)
        _refuse_changes(_by_choice(changes, source.folder), reason, run_folder, resumed=bool(config.resume))
    merged = OmegaConf.create(unflatten(wanted | {("resume",): None, ("fork",): False, ("take_over",): False}))
    make_absolute(merged)  # runs of earlier versions have relative paths
    if config.fork:
        merged.forked_from = str(config.resume)
    checkpoint, step = _starting_checkpoint(source)
    if config.resume and checkpoint is None:
        logger.info("%s has no checkpoint yet; the run starts from its first step.", source.folder)
    return StartingPoint(merged, checkpoint, step, continues=not is_fork)


def _merge_changes(config: DictConfig, folder: Path, run_folder: Path) -> tuple[dict[KeyPath, Any], dict[KeyPath, Any]]:
    """Return the saved config of a run, and the same config with the changes of the command line, both flattened.

    The changes are the differences between `config` and the config that the saved overrides result in with the current
    config files.
    """
    make_absolute(config)
    now = flatten(resolved_values(config))
    saved_overrides = [override for override in _saved_overrides(folder) if override_key(override) != SEARCH_PATH]
    overrides = [*saved_overrides, *search_path_overrides(), f"run_folder={quote(str(run_folder))}"]
    composed = compose_config(command_name(), overrides)
    make_absolute(composed)
    before = flatten(resolved_values(composed))
    saved = flatten(_saved_config(folder, run_folder, now))
    saved |= {key: value for key, value in now.items() if is_secret(value) and saved.get(key, "") is None}
    changed = {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}
    changed -= {("init",)}  # its weights were loaded when the run started: init=last may name another run since then
    wanted = {key: value for key, value in saved.items() if key not in changed or key in now}
    return saved, wanted | {key: now[key] for key in changed if key in now}


def _saved_config(folder: Path, run_folder: Path, now: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """Return the config of the run in `folder` with the paths of `run_folder`.

    now: config of the command, flattened.  Raises UserError if the config names code that the user does not trust.
    """
    config = read_saved(folder / "config.yaml", dict)
    if "run_folder" not in config:
        raise UserError(f"the run cannot be resumed, because {folder / 'config.yaml'} was not written by a run.")
    saved: dict[str, Any] = relocate(current_config(config), run_folder)
    if is_recorded(folder):
        return saved
    require_trusted(unflatten(parts_of_run(flatten(saved))), folder, typed=foreign_targets(unflatten(now)))
    kept, left_out = unrecorded.with_places_of_user(flatten(saved), now, run_folder)
    if left_out:
        origin = "was not recorded as a run of this user, so these settings come from the command line and not from its"
        logger.info("%s %s config.yaml: %s.", folder, origin, ", ".join(left_out))
    return unflatten(kept)


def require_matching_checkpoint(start: StartingPoint, run: Run) -> None:
    """Raise UserError unless the checkpoint has the tensors of the run's module and was trained on the same images."""
    from diffusion_lab import checkpoint_files

    if start.checkpoint is None:
        return
    checkpoint = checkpoint_files.read_run(start.checkpoint, mmap=True)
    data, trained_on = start.config.data, checkpoint.get("ImageDataModule", {}).get("fingerprint")
    if start.continues and trained_on != run.datamodule.fingerprint:
        source = data.get("path") or data.get("hub_name") or data.store._target_
        raise UserError(
            f"`data` must have the images that the run was trained on, got {source}, whose decoded "
            f"content differs; resume={start.config.run_folder} fork=true starts a new run from the checkpoint."
        )
    saved = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    expected = {key: tuple(value.shape) for key, value in run.module.state_dict().items()}
    differing = sorted(key for key in saved.keys() | expected.keys() if saved.get(key) != expected.get(key))
    if differing:
        first = differing[0]
        if start.continues:
            raise UserError(
                f"`model` must have the tensors of {start.checkpoint}, got {len(differing)} other tensors: {first} has "
                f"shape {saved.get(first)} in the checkpoint and {expected.get(first)} in this run; the code of the "
                "network has changed."
            )
        raise UserError(
            f"fork=true must keep the settings of all parts with a state (model, conditioning, ema, times, lora), but "
            f"{len(differing)} tensors differ from {start.checkpoint}; {first} has shape {saved.get(first)} in the "
            f"checkpoint and {expected.get(first)} in this run."
        )


def is_open_ended(config: DictConfig) -> bool:
    """Return whether a run with more steps would have the same other settings.

    A learning-rate schedule that ends with the run, for example, depends on the number of steps.
    """
    current, max_steps = flatten(resolved_values(config)), config.trainer.max_steps
    try:
        config.trainer.max_steps = 2 * max_steps
        return not changes_with_effect(current, flatten(resolved_values(config)))
    finally:
        config.trainer.max_steps = max_steps


def _saved_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run was started with, with the paths that they have in the current folder.

    Of a run that this user has not started, only those are returned that define the result.
    """
    saved = [override for override in read_overrides(folder) if not re.match(r"\+*(resume|fork|take_over)=", override)]
    return saved if is_recorded(folder) else kept_overrides(saved)


def _require_arguments(config: DictConfig) -> None:
    """Raise UserError for settings of the optimizer or its learning-rate schedule that their classes do not have."""
    resolved = resolve(config)
    raise_problems(list(argument_problems({"optimizer": resolved.optimizer, "lr_schedule": resolved.lr_schedule}, "")))


def _by_choice(changes: list[str], folder: Path) -> list[str]:
    """Apply `by_choice`.  folder: run folder, in which Hydra has saved the choices of the run."""
    return by_choice(changes, UsedSettings.read(folder).choices, HydraConfig.get().runtime.choices)


def _refuse_changes(changes: list[str], reason: str, run_folder: Path, *, resumed: bool) -> NoReturn:
    """Raise UserError for changes of settings that affect the result.

    changes: descriptions of the changes.  reason: see `reason_of`.  resumed: whether the setting `resume` was given.
    """
    more = f" and {len(changes) - 8} more" if len(changes) > 8 else ""
    shown = f"{', '.join(changes[:8])}{more}{reason}"
    if resumed:
        overrides = [without_plus(override) for override in given_overrides()]
        saved = [*_saved_overrides(run_folder), "fork=false"]
        given = [text for text in overrides if text not in saved and override_key(text) != "resume"]
        command = [command_line(command_name()), f"resume={shell_word(portable_path(run_folder))}", "fork=true"]
        raise UserError(
            f"resume=... must keep all settings that affect the result, but these differ: {shown}; fork=true starts a "
            f"new run from the checkpoint: {' '.join([*command, *map(shlex.quote, given)])}"
        )
    raise RefusedError(
        f"hydra.run.dir must be a separate folder for each run, but {run_folder} belongs to a run with "
        f"other settings: {shown}."
    )


def _starting_checkpoint(source: Place) -> tuple[Path | None, int]:
    """Return the checkpoint that `source` names, or the newest readable one of its run, and the step of the checkpoint.

    Returns (None, 0) if the run has no checkpoint.  Raises UserError if all checkpoints are damaged.
    """
    from diffusion_lab import checkpoint_files  # imports torch, which only a resumed run needs here

    try:
        path = source.checkpoint or checkpoint_files.newest(source.folder / "checkpoints")
        step = 0 if path is None else int(checkpoint_files.read_run(path, mmap=True)["global_step"])
    except checkpoint_files.DamagedCheckpointError as error:
        raise UserError(f"the run cannot be resumed, because no checkpoint can be read ({error}).") from error
    return path, step
