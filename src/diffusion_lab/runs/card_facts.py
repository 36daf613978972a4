"""What the model card of an exported run states: data, recipe, sampling, and the metric values of its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import OVERRIDES_FILE, identifying_overrides, override_key, unquote
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.data.classes import numbering
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import describe, flat
from diffusion_lab.reporting.model_card import Result
from diffusion_lab.runs.find import MEASURED, find_places
from diffusion_lab.runs.tables.table import METRICS, read_json

if TYPE_CHECKING:
    from diffusion_lab.training.diffusion_module import DiffusionModule

RECIPE = (
    *("schedule", "prediction", "objective", "weighting", "times", "variance", "conditioning", "low_resolution"),
    "masking",
    *("augmentation", "ema", "optimizer", "lr_schedule", "space"),
)
"""Config nodes that describe the training."""

PLACES = ("path", "folder", "dir", "logs", "source", "output", "autoencoder")
"""Ends of the keys of overrides that name places on a machine, which a published card leaves out."""


def data_facts(config: DictConfig, module: "DiffusionModule") -> dict[str, Any]:
    """Return the name, the size and the classes of the images of a run, by the words of the card."""
    data = config.data
    name = data.get("hub_name") or Path(str(data.get("path") or "not known")).name
    side = f"{data.resolution} x {data.resolution} pixels, {data.channels} channel{'s' if data.channels > 1 else ''}"
    flips = "half of the images" if data.get("horizontal_flip") else "none"
    listed = numbering(module.class_names, module.trained_classes)
    names = {"numbers and names of the classes": listed} if listed else {}
    return {"data set": name, "images": side, "classes": data.num_classes, **names, "horizontal flips": flips}


def recipe_facts(config: DictConfig, step: int) -> dict[str, Any]:
    """Return how the network was trained.  config: resolved config of the run.  step: number of training steps."""
    nodes: Any = OmegaConf.to_container(config)
    parts = {name: _one_line(nodes[name]) for name in RECIPE if isinstance(nodes.get(name), dict)}
    batch_size = config.data.get("batch_size", "not known")
    return {"training steps": f"{step:,}", "images per step": batch_size, "seed": config.get("seed"), **parts}


def sampling_facts(module: "DiffusionModule", guidance_scale: Any) -> dict[str, Any]:
    """Return the settings of the sampler of a module, and the guidance scale of the run."""
    sampler = flat({"sampler": describe(module.sampler, omit=("process",))})
    return {name.removesuffix(".name"): value for name, value in sampler.items()} | {"guidance_scale": guidance_scale}


def training_overrides(folder: Path) -> list[str]:
    """Return the overrides of the training command, without places on the machine that trained the run."""
    file = folder / OVERRIDES_FILE
    overrides = identifying_overrides(read_saved(file, list, interpolations=True)) if file.is_file() else set()
    named = (override for override in overrides if not override_key(override).endswith(PLACES))
    return sorted(text for text in map(_without_place, named) if text)


def _without_place(override: str) -> str:
    """Return an override with the name of a file or folder instead of its absolute path; "" for a list with a path."""
    key, _, value = override.partition("=")
    if (path := Path(unquote(value)).expanduser()).is_absolute():
        return f"{key}={path.name}"
    return "" if re.search(r"(^|[\[,:\s\"'])~?/", value) else override


def results(numbers: Any, folder: Path, step: int, weights: Mapping[str, Any]) -> list[Result]:
    """Return the metric values of the exported weights.

    numbers: the setting `numbers`, evaluations of this run; None selects the values in the run folder.
    folder: run folder.  step: training step of the checkpoint.  weights: fingerprint of the weights.
    Values of other weights, which the run folder may have, are left out.
    Raises UserError if `numbers` names an evaluation of another run, or one without values of these weights.
    """
    if numbers is None:
        return _measured(read_json(folder / METRICS), step, weights) if (folder / METRICS).is_file() else []
    found = list[Result]()
    for place in find_places("numbers", numbers, MEASURED):
        record = read_json(place.folder / METRICS)
        own = _measured(record, step, weights) if Path(str(record.get("run", folder))).name == folder.name else []
        if not own:
            raise UserError(
                f"numbers=... must list evaluations of the exported weights of {folder.name} at step {step:,}, got "
                f"{place.folder}, which has no value of them."
            )
        found += own
    return found


def _measured(record: Mapping[str, Any], step: int, weights: Mapping[str, Any]) -> list[Result]:
    """Return the metric values in a metrics.json that were measured with these weights."""
    if record.get("step") != step:
        return []
    numbers = [(number["name"], number["value"], number["fingerprint"]) for number in record.get("numbers", [])]
    return [Result(*number) for number in numbers if _same_weights(number[2].get("weights"), weights)]


def _same_weights(measured: Any, weights: Mapping[str, Any]) -> bool:
    return measured is None or all(measured.get(key) == weights.get(key) for key in ("kind", "name"))


def _one_line(node: Mapping[str, Any]) -> str:
    """Return a config node as the name of its class with its settings."""
    values = {key: _value(value) for key, value in node.items() if not key.startswith("_") and key not in PLACES}
    settings = ", ".join(f"{key}={value}" for key, value in values.items())
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return f"{name}({settings})" if name else settings


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _one_line(value)
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > 16 else f"[{', '.join(map(_value, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
