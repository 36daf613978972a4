"""The settings that a command used, whether they were given on its command line, by a recipe or by default."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lab.config.earlier_versions import current_choice, current_config
from diffusion_lab.config.saved_files import read_saved, reading
from diffusion_lab.runs.settings.changes import WITHOUT_EFFECT, flatten

FILES_OF_EVALUATION = ("metrics", "num_pictures", "save_npz", "save_png", "keep_images", "output_folder", "allow")
"""Settings of an evaluation that select what it measures and writes, and change no value."""

HIDDEN = (*WITHOUT_EFFECT, *FILES_OF_EVALUATION, "hydra/*", "trainer", "run")
"""Glob patterns for settings that are not shown in tables: they have no effect, or other columns show them."""

OF_EVALUATIONS = (
    *("sampler", "time_grid", "clipping", "guidance", "guidance_scale", "guide", "classifier", "classifier_scale"),
    *("features", "metrics", "num_samples"),
)
"""Config groups and settings of a run that affect its samples and metrics, but not its trained network."""


@dataclass(frozen=True)
class UsedSettings:
    """The settings in the config files of a folder; no settings if the folder has no config files.

    choices: config group -> choice.  given: key -> value before interpolation.  values: key -> value.
    """

    choices: Mapping[str, Any]
    given: Mapping[str, Any]
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "UsedSettings":
        with reading(folder):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> "UsedSettings":
        hydra = _read(folder / ".hydra" / "hydra.yaml")
        choices = hydra["hydra"]["runtime"]["choices"] if hydra else {}
        choices = {group: choice for group, choice in choices.items() if not str(choice).startswith("_")}  # of the run
        choices = {group: current_choice(group, str(choice)) or choice for group, choice in choices.items()}
        given = _flat(current_config(_read(folder / ".hydra" / "config.yaml")))
        return cls(choices, given, _flat(current_config(_read(folder / "config.yaml"))) or given)

    def text(self, key: str) -> str | None:
        """Return the choice of a config group or the value of a setting as text.

        Returns None if it is unknown, computed from settings of another config, or refers to itself.
        """
        followed = set[str]()
        while key not in followed:
            found = self.choices if key in self.choices else self.values
            if key not in found:
                return None
            value = found[key]
            if not isinstance(value, str) or "${" not in value:
                return as_text(value)
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value)
            if reference is None:
                return None
            followed.add(key)
            key = reference[1]
        return None

    def used_in(
        self,
        evaluation: "UsedSettings | None",
        overrides: Mapping[str, str],
        overridden: Sequence[str],
        different: Sequence[str],
        measured: Mapping[str, str],
    ) -> dict[str, str | None]:
        """Return the values of settings that this run used or, if given, that an evaluation of this run used.

        overrides: overrides of the evaluation or run.  overridden: keys for which an evaluation can have its own value.
        different: settings of the run; they are named trained.KEY if the evaluation has its own value of KEY. An own
            value replaces the value of the run if the setting does not affect the trained network.
        measured: settings that the fingerprints of the evaluation state; see `measured_settings`.
        """
        if evaluation is None:
            return {key: self.text(key) or overrides.get(key) for key in (*overridden, *different)}
        stated = {} if evaluation.given else measured  # an evaluation with an output_folder has no config files
        own = {
            key: stated.get(key) or evaluation._not_null(key) or overrides.get(key) for key in (*overridden, *different)
        }
        used = {key: own[key] for key in overridden}
        for key in overridden:
            # Another choice of a config group, such as sampler=heun, does not take its settings from the run.
            group = key.partition(".")[0]
            if used[key] is None and group not in stated and not evaluation._not_null(group):
                used[key] = self.text(key)
        used |= {key: measured[key] for key in overridden if key in measured}
        replaced = [key for key in different if evaluation._replaces(key, measured.get(key) or own[key])]
        trained = [key for key in different if key not in replaced]
        used |= {key: measured.get(key, own[key]) for key in replaced}
        return used | {f"trained.{key}" if own[key] else key: self.text(key) for key in trained}

    def _replaces(self, key: str, own: str | None) -> bool:
        """Return whether a setting of a run has no effect on this evaluation, which may have its own value of it."""
        group = key.partition(".")[0]
        is_replaced = group in OF_EVALUATIONS and bool(own or self._not_null(group))
        return is_replaced or key.startswith("callbacks.measure_distance.")

    def _not_null(self, key: str) -> str | None:
        text = self.text(key)
        return None if text == "null" else text  # with null, an evaluation takes a setting from the run


def differing(runs: Sequence[UsedSettings]) -> list[str]:
    """Return the config groups and settings with an effect that differ between runs.

    A setting that is computed from other settings, and a setting in a config group whose choice differs, are left out.
    Runs without config files are ignored.
    """
    known = [run for run in runs if run.given]
    groups = _differing([run.choices for run in known])
    settings = _differing([run.given for run in known])
    return groups + [key for key in settings if not any(key.startswith(f"{group}.") for group in groups)]


def is_shown(key: str) -> bool:
    """Return whether tables of runs show a setting."""
    # The group logger is hidden with logger.*
    return not any(fnmatch.fnmatch(name, pattern) for pattern in HIDDEN for name in (key, f"{key}."))


def _differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that all mappings have, with different values."""
    keys = [key for key in (runs[0] if runs else ()) if all(key in run for run in runs)]
    return [key for key in keys if is_shown(key) and any(run[key] != runs[0][key] for run in runs)]


def as_text(value: Any) -> str:
    """Return a value in the form in which the command line accepts it."""
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any]:
    content = read_saved(path, dict, interpolations=True) if path.is_file() else {}
    return {str(key): value for key, value in content.items()}


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {".".join(map(str, path)): value for path, value in flatten(config).items() if path}
