"""The networks of folders for `import`: folders of `diffusers` (format diffusers), and exports (format safetensors)."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any

from diffusion_lab.config.earlier_versions import current_config
from diffusion_lab.errors import UserError
from diffusion_lab.interop import diffusers_folder, safetensors_folder
from diffusion_lab.interop.foreign_config import ForeignConfig, read_json
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.run_overrides import data_overrides, label_overrides, variance_overrides, without_given
from diffusion_lab.interop.settings_overrides import CHOICES, text, train_overrides

OF_FILES = ("num_heads", "head_channels", "attention_order", "resolution", "autoencoder")
"""Options for files, which do not contain these settings. Folders contain them."""

DEPTH = 20
"""Largest depth of the config of an export."""


def read_diffusers(folder: Path, options: Options) -> Imported:
    """Return the network of a folder of `diffusers`.

    Raises UserError for a folder without a scheduler if no schedule is given, and see `diffusers_folder.read`.
    """
    _require_no_options(options, folder)
    settings, weights = diffusers_folder.read(folder)
    if "schedule" not in settings and "schedule" not in options.given:
        raise UserError(f"schedule must be given (schedule=linear) for {folder}, which has no scheduler.")
    node, labels = _without_defaults(settings["model"]), settings["model"]["labels"]
    num_classes, channels, factor = labels["num_classes"], node["in_channels"], 1
    if "space" in settings:
        channels, factor = 3, _latent_factor(settings["space"])
    overrides = data_overrides(
        None, resolution=factor * node["resolution"], channels=channels, num_classes=num_classes
    )  # fmt: skip
    overrides += label_overrides(num_classes, labels["dropout"])
    if "variance" not in settings:
        overrides += variance_overrides(learned=node["out_channels"] == 2 * node["in_channels"])
    overrides += [*train_overrides(settings), "ema=constant"]
    conventions = {
        "null_class": num_classes if labels["dropout"] else None, "time": "step index",
        "sampler": settings["sampler"]["_target_"].rpartition(".")[2] if "sampler" in settings else None,
    }  # fmt: skip
    return Imported(
        "train", node, weights, without_given(overrides, options.given), conventions,
        class_names=tuple(settings.get("class_names", ())),
    )  # fmt: skip


def read_export(folder: Path, options: Options) -> Imported:
    """Return the network of a folder that `export format=safetensors` wrote.

    Its settings replace those of the config, so that the run is sampled exactly like the exported one.
    Raises UserError for settings that the folder contains and that were typed, and see `safetensors_folder.read`.
    """
    _require_no_options(options, folder)
    settings, weights = safetensors_folder.read(folder)
    file = folder / safetensors_folder.CONFIG
    nodes = current_config({name: settings[name] for name in safetensors_folder.CONFIG_NODES if name in settings})
    if typed := sorted({key.partition(".")[0] for key in options.given} & {*nodes}):
        raise UserError(f"{typed[0]} must not be given, because {file} contains it.")
    _require_plain({**nodes, **{name: settings.get(name) for name in ("weights", "guidance")}}, file)
    sizes = _sizes(settings, file)
    overrides = data_overrides(None, **sizes)
    overrides += variance_overrides(learned=".Learned" in str(nodes["variance"]["_target_"]))[:1]
    schedule = str(nodes["schedule"]["_target_"]).rpartition(".")[2]
    overrides += [*([CHOICES[schedule]] if schedule in CHOICES else []), "ema=constant"]
    overrides += _guidance_overrides(settings, file)
    return Imported(
        "train", nodes["model"], weights, without_given(overrides, options.given),
        {"weights": settings.get("weights")}, ForeignConfig(settings, {"step": 0}, file).whole("step", least=0),
        nodes=nodes, class_names=_names(settings, file),
    )  # fmt: skip


def _require_no_options(options: Options, folder: Path) -> None:
    """Raise UserError for a setting of the command that only files need."""
    for name in OF_FILES:
        if (value := getattr(options, name)) is not None:
            raise UserError(f"{name} must be null, because {folder} contains this setting, got {value}.")


def _without_defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config node of a network without max_period, which conf/ does not list and which has its default."""
    if "sinusoids" not in node:
        return dict(node)
    return {**node, "sinusoids": {key: value for key, value in node["sinusoids"].items() if key != "max_period"}}


def _latent_factor(space: Mapping[str, Any]) -> int:
    """Return the ratio of the resolutions of images and latents: each level of the autoencoder but one halves it."""
    file = Path(space["autoencoder"]["pretrained_model_name_or_path"]) / "config.json"
    config = ForeignConfig(read_json(file), {"block_out_channels": [64]}, file)
    if len(config.sequence("block_out_channels", int)) > 10:
        raise config.refuse("block_out_channels", "a list of at most 10 numbers")
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _sizes(settings: Mapping[str, Any], file: Path) -> dict[str, int]:
    """Return the sizes of the training images.  Raises UserError unless they are whole numbers."""
    given = settings.get("data")
    config = ForeignConfig(given if isinstance(given, dict) else {}, {"resolution": None, "channels": None}, file)
    labels = settings["model"].get("labels") or {}
    classes = ForeignConfig(labels if isinstance(labels, dict) else {}, {"num_classes": 0}, file)
    return {
        "resolution": config.whole("resolution"),
        "channels": config.whole("channels"),
        "num_classes": classes.whole("num_classes", least=0),
    }


def _guidance_overrides(settings: Mapping[str, Any], file: Path) -> list[str]:
    """Return the overrides of the guidance of an export.  Raises UserError unless its settings are numbers."""
    given = settings.get("guidance") or {}
    names = safetensors_folder.GUIDANCE
    if not isinstance(given, dict) or set(given) - set(names):
        raise UserError(f"`guidance` must have the settings {', '.join(names)} in {file}, got {str(given)[:100]}.")
    for name, value in given.items():
        if any(type(each) not in (int, float, NoneType) for each in (value if isinstance(value, list) else [value])):
            raise UserError(f"guidance.{name} must be a number, numbers or null in {file}, got {str(value)[:100]}.")
    return [f"guidance.{name}={text(value)}" for name, value in given.items()]


def _names(settings: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names = settings.get("class_names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`class_names` must be a list of texts in {file}, got {str(names)[:100]}.")
    return tuple(names)


def _require_plain(nodes: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for an interpolation in the config of an export, and for a config that is nested too deeply.

    An interpolation could read environment variables, and has no meaning outside of the config of its run.
    """
    rest: list[tuple[Any, int]] = [(nodes, 0)]
    while rest:
        value, depth = rest.pop()
        if depth > DEPTH:
            raise UserError(f"{file} must have at most {DEPTH} levels, got more.")
        if isinstance(value, Mapping):
            rest += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            rest += [(each, depth + 1) for each in value]
        elif (isinstance(value, str) and "${" in value) or (isinstance(value, float) and not isfinite(value)):
            raise UserError(f"{file} must contain plain values, got {str(value)[:100]}.")
