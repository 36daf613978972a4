"""Going on with a run: its config comes from its folder, and its state from its newest whole checkpoint.

resume=RUN continues the run where it is; with fork=true a new run begins from its state, and may differ in everything.
"""

import fnmatch
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from diffusion_lab.config.compose import command_name, compose_config
from diffusion_lab.config.earlier_versions import current_config, current_overrides
from diffusion_lab.config.overrides import OVERRIDES_FILE, quote
from diffusion_lab.distributed import slurm_job
from diffusion_lab.errors import UserError
from diffusion_lab.paths import ROOT
from diffusion_lab.runs.load import resolve
from diffusion_lab.runs.supervise import FolderInUseError
from diffusion_lab.runs.training_setup import Run

KeyPath = tuple[Any, ...]

SUMMARY = ("steps", "loss", "images_per_second", "minutes")
"""What summary.json holds of every run, beside a distance where one was measured."""

WITHOUT_EFFECT = (
    *("run_folder", "resume", "fork", "forked_from", "logger.*", "sweep.*"),
    *("trainer.max_steps", "trainer.max_time", "trainer.log_every_n_steps", "trainer.enable_*", "trainer.profiler"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.plugins"),
    *("trainer.accumulate_grad_batches", "data.num_workers", "data.datamodule.num_workers"),
    *(f"data{part}.{name}" for part in ("", ".store", ".datamodule.store") for name in ("path", "cache_folder")),
    *("callbacks.progress.*", "callbacks.throughput.*", "callbacks.sample_images.*", "callbacks.save_last.*"),
    *("callbacks.*.every_n_steps", "callbacks.*.also_at", "callbacks.*.folder", "callbacks.*.batch_size"),
)
"""Settings that change when a run ends, where it runs and what is written on the way, but no step and no number."""


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins.

    checkpoint: the file with its state, None at step 0.  step: how many steps are done.  continues: in its own folder.
    """

    config: DictConfig
    checkpoint: Path | None = None
    step: int = 0
    continues: bool = False

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        max_steps = self.config.trainer.max_steps
        return self.continues and isinstance(max_steps, int) and 0 < max_steps <= self.step


def restore_command_line(command: str) -> None:
    """Puts what a resumed run was started with before what is given now, and its folder in place of a new one.

    Hydra then composes the run as it was, with the changes.  Raises UserError where there is no such run.
    """
    words = sys.argv[1:]
    found = [match[1] for word in words if (match := re.fullmatch(r"\+*resume=(.*)", word)) and match[1] != "null"]
    if not found or os.environ.get("DIFFUSION_LAB_RESUMED") == found[-1]:
        return
    if any(word in ("-m", "--multirun") for word in words):
        raise UserError(f"resume continues one run at a time, got a sweep of resume={found[-1]}.")
    folder = _located(found[-1], command)
    others = [word for word in words if _key(word) != "resume"]
    given = {_key(word) for word in others}
    # A setting that was added stays added, so that it can be changed.
    kept = [word for word in _words_of(folder) if _key(word) not in given or re.match(r"\+[^=]*\.", word)]
    sys.argv[1:] = [*kept, *others, f"resume={quote(str(folder))}"]
    if not any(re.fullmatch(r"\+*fork=true", word, re.IGNORECASE) for word in others):
        if "hydra.run.dir" in given:
            raise UserError("hydra.run.dir goes with fork=true alone: resume goes on in the run's own folder.")
        sys.argv += [f"hydra.run.dir={quote(str(folder))}", "hydra.output_subdir=null"]
    # Processes that this one starts inherit the prepared command line.
    os.environ["DIFFUSION_LAB_RESUMED"] = quote(str(folder))


def starting_point(config: DictConfig) -> StartingPoint:
    """What the command line describes: a new run, or the rest of an old one.

    A command whose folder holds its run already goes on with it, as after a kill or in a job that was queued again.
    Raises UserError where settings would change the result of the steps that are left.
    """
    if not isinstance(config.fork, bool):
        raise UserError(f"fork must be true or false, got {config.fork}.")
    run_folder = Path(config.run_folder)
    is_there = (run_folder / "config.yaml").is_file()
    if not config.resume and not is_there:
        return StartingPoint(config)
    fork = config.fork and not is_there  # a fork that was queued again goes on where it was
    folder = Path(config.resume) if config.resume and not is_there else run_folder
    now = _flat(_plain(config))
    before = _flat(_plain(compose_config(command_name(), [*_words_of(folder), f"run_folder={quote(str(run_folder))}"])))
    saved = _flat(_relocated(current_config(_loaded(folder / "config.yaml", dict)), run_folder))
    changed = {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}
    wanted = {key: value for key, value in saved.items() if key not in changed or key in now}
    wanted |= {key: now[key] for key in changed if key in now}
    if not fork:
        _refuse_changes(saved, wanted, resumed=bool(config.resume))
    new = OmegaConf.create(_nested(wanted | {("resume",): None, ("fork",): False}))
    if config.fork:
        new.forked_from = str(config.resume)
    checkpoint, step = _newest(folder)
    if config.resume and checkpoint is None and slurm_job.rank() == 0:
        print(f"note: {folder} has no checkpoint yet; the run starts from its first step.", file=sys.stderr)
    return StartingPoint(new, checkpoint, step, continues=not fork)


def require_matching_checkpoint(start: StartingPoint, run: Run) -> None:
    """Raises UserError unless the state to go on from fits what is trained, and on the same images."""
    from diffusion_lab import checkpoint_files

    if start.checkpoint is None:
        return
    checkpoint = checkpoint_files.read_run(start.checkpoint, mmap=True)
    data, trained_on = start.config.data, checkpoint.get("ImageDataModule", {}).get("fingerprint")
    if start.continues and trained_on != run.datamodule.train_images.fingerprint:
        raise UserError(
            f"resume must find the images that the run was trained on, but {data.path or data.hub_name} holds others "
            "now: their decoded content differs; fork=true starts a run of its own from there."
        )
    saved = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    own = {key: tuple(value.shape) for key, value in run.module.state_dict().items()}
    differing = sorted(key for key in saved.keys() | own.keys() if saved.get(key) != own.get(key))
    if differing:
        first = differing[0]
        raise UserError(
            f"fork must keep what has a state (model, conditioning, ema, times): {len(differing)} tensors differ from "
            f"those in {start.checkpoint}, {first} has shape {saved.get(first)} there and {own.get(first)} here."
        )


def print_done(start: StartingPoint) -> float | None:
    """Says that no step is left; the number that the run came to."""
    folder = Path(start.config.run_folder)
    print(
        f"nothing left to do: {folder} has done its {start.step:,} steps; "
        f"trainer.max_steps above {start.step} trains it on."
    )
    summary = folder / "summary.json"
    content: dict[str, float | None] = json.loads(summary.read_text()) if summary.is_file() else {}
    # A distance stands under a name that tells how it was measured; accuracies are not to be minimised.
    distances = [v for name, v in content.items() if name not in SUMMARY and not name.startswith("accuracy_")]
    return distances[-1] if distances else content.get("loss")


def _located(name: str, command: str) -> Path:
    """The folder of a run of a command: as it is, below logs/COMMAND, or that of the last run."""
    runs = ROOT / "logs" / command
    if name == "last":
        folders = [config.parent for depth in ("*", "*/*") for config in runs.glob(f"{depth}/config.yaml")]
        if not folders:
            raise UserError(f"resume=last finds no run in {runs}.")
        return max(folders, key=_last_written)
    if not name:
        raise UserError("resume must be the folder of a run, or last, got nothing.")
    wanted = Path(name.strip("'\"")).expanduser()
    for folder in (Path.cwd() / wanted, ROOT / wanted, runs / wanted):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    raise UserError(f"resume must be the folder of a run, or last, got {name}: it holds no config.yaml.")


def _last_written(folder: Path) -> float:
    files = [path.stat().st_mtime for path in folder.glob("checkpoints/*.ckpt")]
    return max(files, default=(folder / "config.yaml").stat().st_mtime)


def _words_of(folder: Path) -> list[str]:
    """What a run was started with."""
    paths = [path for path in (folder / OVERRIDES_FILE, folder / ".hydra" / OVERRIDES_FILE) if path.is_file()]
    words = current_overrides([str(word) for word in _loaded(paths[0], list)]) if paths else []
    return [word for word in words if not re.match(r"(resume|fork)=", word)]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _loaded(path: Path, kind: type) -> Any:
    """The content of a run's YAML file.  Raises UserError where it was damaged."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"resume cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if type(content) is not kind or (type(content) is dict and "run_folder" not in content):
        raise UserError(f"resume cannot read {path}: it is not what a run wrote.")
    return content


def _refuse_changes(saved: dict[KeyPath, Any], wanted: dict[KeyPath, Any], *, resumed: bool) -> None:
    changed = {key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key)}
    differing: dict[str, str] = {}
    for key in sorted(changed, key=lambda key: (len(key), key)):
        name = ".".join(map(str, key))
        # What stands in a config twice, as a schedule does in process.schedule, is said once.
        copied = any(name.endswith(f".{shorter}") for shorter in differing)
        if not copied and not any(fnmatch.fnmatch(name, pattern) for pattern in WITHOUT_EFFECT):
            differing[name] = f"{name} (was {saved.get(key)}, got {wanted.get(key)})"
    if differing:
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        shown = f"{', '.join(list(differing.values())[:8])}{more}"
        if resumed:
            raise UserError(
                "resume must leave everything that changes the result as it was, but these differ: "
                f"{shown}; fork=true starts a run of its own from there."
            )
        raise FolderInUseError(
            f"hydra.run.dir must be a folder of its own for each run, but {wanted['run_folder',]} holds one from which "
            f"these differ: {shown}."
        )


def _newest(folder: Path) -> tuple[Path | None, int]:
    from diffusion_lab import checkpoint_files  # torch: only where there is something to go on from

    try:
        path = checkpoint_files.newest(folder / "checkpoints")
    except checkpoint_files.DamagedCheckpointError as error:
        raise UserError(f"resume finds no whole checkpoint: {error}") from error
    if path is None:
        return None, 0
    return path, int(checkpoint_files.read_run(path, mmap=True)["global_step"])


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(resolve(config))


def _flat(node: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """A nested config as {keys on the way: value}; lists and empty nodes are values."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {name: value for key, child in node.items() for name, value in _flat(child, (*path, key)).items()}


def _nested(flat: dict[KeyPath, Any]) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for (*parents, name), value in flat.items():
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return nested


def _relocated(saved: Any, folder: Path) -> Any:
    """The saved config with the run's folder where it is now, in every path that leads into it."""
    before, after = str(saved["run_folder"]), str(folder)

    def shifted(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: shifted(child) for key, child in node.items()}
        if isinstance(node, list):
            return [shifted(child) for child in node]
        inside = isinstance(node, str) and (node == before or node.startswith(before + os.sep))
        return after + node[len(before) :] if inside else node

    return shifted(saved)
