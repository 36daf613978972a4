"""Comparison of a planned run with the run that its folder already contains, by the rule of `resume`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.earlier_versions import current_overrides
from diffusion_lab.config.library_classes import with_plus
from diffusion_lab.config.overrides import OVERRIDES_FILE, identifying_overrides, override_key
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.config.search_path import KEY as SEARCH_PATH
from diffusion_lab.runs.load import resolved_values
from diffusion_lab.runs.settings.changes import KeyPath, by_choice, changes_with_effect, flatten
from diffusion_lab.runs.trust import is_recorded
from diffusion_lab.runs.unrecorded import is_plain

LENGTHS = (("trainer", "max_steps"), ("trainer", "max_epochs"))


@dataclass(frozen=True)
class Comparison:
    """What a planned run changes in the run of its folder.

    changes: descriptions of the changed settings that affect the result.
    is_longer: whether the planned run has more training steps.
    shorter: override with fewer training steps, such as "trainer.max_steps=30"; None if there is none.
    """

    changes: Sequence[str] = ()
    is_longer: bool = False
    shorter: str | None = None


def compare(config: DictConfig, overrides: Sequence[str], folder: Path, master: DictConfig, loader: Any) -> Comparison:
    """Compare the planned config of a run with the config that the overrides in its folder result in.

    overrides: overrides of the planned run.  master: config of the sweep.  loader: Hydra's config loader.
    """
    saved = saved_overrides(folder)
    if saved is None or identifying_overrides(overrides) == identifying_overrides(saved):
        return Comparison()
    earlier = loader.load_sweep_config(master, with_plus(str(master.hydra.job.config_name), saved))
    both = [without_hydra(each, folder) for each in (earlier, config)]
    before, now = (flatten(resolved_values(each)) for each in both)
    lengths = [(key, before.pop(key, None), now.pop(key, None)) for key in LENGTHS]
    lengths = [(key, old, new) for key, old, new in lengths if old != new]
    shorter = [f"{'.'.join(key)}={new}" for key, old, new in lengths if len(lengths) == 1 and _is_shorter(old, new)]
    changes = changes_with_effect(before, now)
    # A changed setting also changes all settings that refer to it; these are named only if no other setting changed.
    typed = changes_with_effect(*(_without(flatten(OmegaConf.to_container(each)), LENGTHS) for each in both))
    choices = (each.hydra.runtime.choices for each in (earlier, config))
    named = by_choice([change for change in changes if change in typed] or changes, *choices)
    return Comparison(named, len(lengths) > len(shorter), shorter[0] if shorter else None)


def _is_shorter(old: Any, new: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in (old, new)) and 0 < new < old


def saved_overrides(folder: Path) -> list[str] | None:
    """Return the overrides of the run in a folder; only plain ones if this user has not written it."""
    paths = [path for path in (folder / OVERRIDES_FILE, folder / ".hydra" / OVERRIDES_FILE) if path.is_file()]
    overrides = current_overrides(list(map(str, read_saved(paths[0], list, interpolations=True)))) if paths else None
    if overrides and not is_recorded(folder):  # what another person wrote must not read this machine
        overrides = [override for override in overrides if is_plain(override)]
    return overrides and [override for override in overrides if override_key(override) != SEARCH_PATH]


def without_hydra(config: DictConfig, folder: Path) -> DictConfig:
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(plain, False)
    for name in ("run_folder", "output_folder"):
        if name in plain:
            plain[name] = str(folder)  # by default computed from the config of a started run
    return plain


def _without(flat: dict[KeyPath, Any], keys: Sequence[KeyPath]) -> dict[KeyPath, Any]:
    return {key: value for key, value in flat.items() if key not in keys}
