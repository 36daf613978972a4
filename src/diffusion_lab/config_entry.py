"""The command line: Hydra's words in, a composed config or one clear sentence out.

Torch and Lightning are not imported here: help and a refused command must not wait seconds for them.
"""

import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab import host_memory, job, layout, run_status, sweeps
from diffusion_lab.attempt import ForeignFolderError, attempt
from diffusion_lab.config_check import META, UserError, suggestion
from diffusion_lab.config_values import ROOT as ROOT

CONF = ROOT / "conf"

WORDS = "overrides.yaml"
"""The command line of a run, in its folder."""


def entry(
    config_name: str,
    command: Callable[[DictConfig], object],
    prepare_command_line: Callable[[], None] = lambda: None,
    *,
    keeps_status: bool = False,
) -> None:
    """Runs `command` on the composed config of `conf/<config_name>.yaml`, as one run or as each run of a sweep.

    keeps_status: each run has a status file in its folder, and a sweep ends with a table of all.
    """
    # Hydra prints errors in its own way and ends the process; asked for full errors it raises them instead. Whether the
    # person asked for tracebacks is kept beside, for the processes that this one may start.
    tracebacks = os.environ.setdefault("DIFFUSION_LAB_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"

    begun = False

    def run(config: DictConfig) -> object:
        nonlocal begun
        begun = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        is_own = not swept() and run_status.read(folder) is None  # nobody waits for it
        try:
            if not keeps_status:
                return command(config)
            result = attempt(folder, lambda: command(config), in_sweep=swept())
            keep_words(folder)
            return result
        except UserError as error:
            if is_own and not isinstance(error, ForeignFolderError):
                _forget_run(folder)
            if tracebacks == "1":
                raise
            if not swept():
                _end(str(error))
            print(f"error: {folder.name}: {error}", file=sys.stderr)  # the other runs of a sweep go on
            raise sweeps.RunFailedError(f"{folder.name}: {error}") from error
        except Exception as error:
            if not swept():
                raise
            traceback.print_exc()  # Hydra keeps it to itself until the sweep is over
            raise sweeps.RunFailedError(f"{folder.name}: {type(error).__name__}: {error}") from error

    failure = run_failure = None
    try:
        prepare_command_line()
        _leave_files_to_the_first()
        sweeps.remember_command_line()
        layout.share_cores()
        host_memory.keep_freed()
        _prefer_own_search()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if tracebacks == "1":
            raise
        failure = _sentence(error, config_name)
    except OSError as error:
        if begun or tracebacks == "1":
            raise
        failure = f"hydra.run.dir must be a folder that can be written to: {error.strerror}, got {error.filename}."
    except KeyboardInterrupt:  # before training, which ends by itself between two steps
        if tracebacks == "1":
            raise
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
    except sweeps.RunFailedError as error:
        run_failure = str(error)
    failures = sweeps.end() if keeps_status else None
    if said := failure or failures or run_failure:
        _end(said)


def _leave_files_to_the_first() -> None:
    """Of the processes of a run, whoever started them, one alone writes Hydra's notes and log."""
    if job.rank() > 0:
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=stdout"]


def _prefer_own_search() -> None:
    """Hydra's own plugin for Optuna, where it is installed, has a preset of the name of ours, and Hydra mixes them."""
    Plugins.instance()
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """Another config beside that of the running job.  Raises UserError where it cannot be composed."""
    try:
        return hydra.compose(config_name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error, config_name).rstrip(".")) from error


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def keep_words(folder: Path) -> None:
    """Keeps what a run was started with, so that it can be resumed: Hydra's own note is of the last command given."""
    if job.rank() == 0:
        words = [word for word in HydraConfig.get().overrides.task if not re.match(r"\+*(resume|fork)=", word)]
        OmegaConf.save(OmegaConf.create(words), folder / WORDS)


def _forget_run(folder: Path) -> None:
    """Removes the folder of a run that was refused, unless there is more in it than notes of its start."""
    notes = (".hydra", run_status.LOCK, run_status.STATUS, "wandb_id")
    if job.rank() == 0 and all(path.name in notes or path.suffix == ".log" for path in folder.iterdir()):
        shutil.rmtree(folder)


def command_name() -> str:
    """Of the config that is composed, and of the file in src/ that runs."""
    return str(HydraConfig.get().job.config_name)


def swept() -> bool:
    """Whether this run is one of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _sentence(error: Exception, config_name: str) -> str:
    """What a person did wrong, in one sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        meant = _meaning_here(group, choice) or suggestion(choice, list(error.options))
        return f"{group} must be one of {', '.join(error.options)}, got {choice}{meant}."
    if isinstance(error, ConfigCompositionException):
        if found := re.match(
            r"Could not (?:override|append to config\.?|delete from config\.?) ?'([^']+)'", str(error)
        ):
            return _unknown_key(found[1], config_name)
        if found := re.search(r"Could not override '([^']+)'\.", str(error)):
            return _unknown_key(found[1].split("@")[0], config_name)
    return re.sub(r" See https://hydra\S+ for details", ".", " ".join(str(error).split()))


def _meaning_here(group: str, choice: str) -> str:
    """The end of a sentence that says what a name of other code is called here, if it is one."""
    meaning = OmegaConf.select(OmegaConf.load(CONF / "_names_elsewhere.yaml"), f"{group}.{choice}")
    return f"; elsewhere that is what is here {group}={meaning}" if meaning else ""


def _unknown_key(key: str, config_name: str) -> str:
    """The sentence for a key that the config does not have."""
    node = _composed_without(key, config_name)
    parent, _, name = key.rpartition(".")
    while parent and _at(node, parent) is None:
        parent, _, name = parent.rpartition(".")
    key = f"{parent}.{name}" if parent else name
    choices = [str(choice) for choice in node] if isinstance(node := _at(node, parent), DictConfig) else []
    accepted = sorted(choice for choice in choices if choice not in META and not choice.startswith("_"))
    if not parent:
        accepted = sorted({*accepted, *_groups(config_name)} - {"hydra"})
    where = f" in {parent}" if parent else ""
    children: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    below = [f"{parent}.{child}.{name}".lstrip(".") for child, content in children.items() if _has(content, name)]
    meant = f"; perhaps you mean {below[0]}" if below else suggestion(name, accepted)
    return f"{key} is not a setting{where}: accepted are {', '.join(accepted) or 'none'}{meant}."


def _groups(config_name: str) -> list[str]:
    """The groups that a command's main file names."""
    entries = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
    named = [str(key).split("@")[0] for entry in entries if isinstance(entry, DictConfig) for key in entry]
    return [name for name in named if (CONF / name).is_dir()]


def _has(node: Any, name: str) -> bool:
    return isinstance(node, dict) and name in node


def _composed_without(key: str, config_name: str) -> DictConfig:
    """The config that the command line asks for, leaving out its overrides of `key`."""
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-") and "," not in word]
    kept = [word for word in overrides if word.lstrip("+~").split("=")[0].split("@")[0] != key]
    for candidates in (kept, []):
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                return hydra.compose(config_name, overrides=candidates, return_hydra_config=key.startswith("hydra."))
        except (HydraException, OmegaConfBaseException):
            continue  # a second mistake beside the first: the config without any override still names the keys
    return OmegaConf.create()


def _at(config: DictConfig, path: str) -> Any:
    return OmegaConf.select(config, path) if path else config
