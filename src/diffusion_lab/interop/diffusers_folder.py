"""Import of a folder of `diffusers`: a pipeline with UNet2DModel or DiTTransformer2DModel, or such a model alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop import diffusers_dit, diffusers_scheduler, diffusers_unet, diffusers_unet_weights
from diffusion_lab.interop.foreign_config import read_json
from diffusion_lab.interop.own_settings import OwnUNet, build_on_meta
from diffusion_lab.interop.weights_files import as_float32, read_tensors

MODELS = ("unet", "transformer")
"""Names of the part of a pipeline that is the denoising network."""

PARTS = (*MODELS, "scheduler", "vae")
"""Names of the parts of a pipeline that have a counterpart."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""File that lists the weights files of a large model."""

SCALE = 0.18215
"""Default of scaling_factor of AutoencoderKL."""


def recognizes(path: Path) -> bool:
    """Return whether a path is a folder that `diffusers` wrote: a pipeline, or a model with its config."""
    if (path / "model_index.json").is_file():
        return True
    if not (path / "config.json").is_file():
        return False
    content = read_json(path / "config.json")
    return "_diffusers_version" in content or str(content.get("_class_name", "")) in (
        "UNet2DModel",
        "DiTTransformer2DModel",
    )


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the weights in a folder of `diffusers`.

    The settings are config nodes with plain values by the names of the config of a run: model, and for a folder with a
    scheduler also schedule, prediction, process, variance, sampler, time_grid and clipping; space for a pipeline with
    an autoencoder; and class_names for a pipeline that has them. The weights are the state_dict of the network.
    Raises UserError for a part or a setting that has no counterpart, and for files that are damaged or do not match.
    """
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    _require_known_parts(index, path)
    model = _part(path, next((name for name in MODELS if name in index), "unet"))
    content = read_json(model / "config.json")
    found, weights = _weights(model)
    settings, state = _network(content, model / "config.json", found, weights)
    scheduler = _part(path, "scheduler") / "scheduler_config.json"
    if scheduler.is_file():
        node = settings["model"]
        learns_variance = node["out_channels"] == 2 * node["in_channels"]
        settings |= diffusers_scheduler.own_settings(read_json(scheduler), scheduler, learns_variance=learns_variance)
    if "vae" in index:
        settings["space"] = _space(_part(path, "vae"))
    if names := _class_names(index, settings["model"]["labels"]["num_classes"]):
        settings["class_names"] = names
    return settings, as_float32(state)


def _require_known_parts(index: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a part of a pipeline that has no counterpart."""
    lists = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    parts = {name: value[1] for name, value in lists.items() if value[1]}
    if unknown := [f"{name} ({kind})" for name, kind in parts.items() if name not in PARTS]:
        raise UserError(
            f"{path / 'model_index.json'} must describe a pipeline of {', '.join(PARTS)}, got "
            f"{str(index.get('_class_name'))[:100]} with {', '.join(unknown)[:200]}, which have no counterpart."
        )
    if "vae" in parts and parts["vae"] != "AutoencoderKL":
        raise UserError(f"`vae` must be AutoencoderKL in {path / 'model_index.json'}, got {str(parts['vae'])[:100]}.")


def _part(path: Path, name: str) -> Path:
    """Return the folder of a part of a pipeline. Early pipelines (google/ddpm-*) have all parts in one folder."""
    return path / name if (path / name).is_dir() else path


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Return the tensors of a model and the path of their file.  Raises UserError if there is no weights file."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_tensors(folder / name), folder / name
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} must contain {' or '.join(WEIGHTS)}, got neither.")
    tensors = dict[str, Tensor]()
    names = read_json(folder / INDEX).get("weight_map")
    for name in sorted({str(each) for each in names.values()} if isinstance(names, dict) else ()):
        if Path(name).name != name:
            raise UserError(f"{folder / INDEX} must name files in its folder, got {name[:100]!r}.")
        tensors |= read_tensors(folder / name)
    return tensors, folder / INDEX


def _network(
    content: dict[str, Any], config: Path, found: dict[str, Tensor], weights: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings with the config node of the network, and its state_dict.

    content: config of the model, from the file `config`.  found: tensors of the file `weights`.
    """
    if diffusers_dit.is_dit(content):
        node = diffusers_dit.own_settings(content, config)
        _require_plausible(node["depth"], found, config)
        expected = build_on_meta(node).state_dict()
        return {"model": node}, diffusers_dit.own_weights(found, expected, node, weights)
    if content.get("_class_name") != "UNet2DModel":
        raise UserError(
            f"the model must be UNet2DModel or DiTTransformer2DModel in {config}, got "
            f"{str(content.get('_class_name'))[:100]}, which has no counterpart."
        )
    node = diffusers_unet.own_settings(content, config)
    _require_plausible(node["num_blocks"] * len(node["channel_multipliers"]), found, config)
    swap = diffusers_unet.swaps_sinusoids(content)
    network, expected = OwnUNet.of(node), build_on_meta(node).state_dict()
    return {"model": node}, diffusers_unet_weights.own_weights(found, expected, network, weights, swap=swap)


def _require_plausible(num_blocks: int, found: Mapping[str, Tensor], config: Path) -> None:
    """Raise UserError for more blocks than tensors, before a network of any size is built."""
    if num_blocks > len(found):
        raise UserError(
            f"{config} must describe the network of its weights file ({len(found)} tensors), got {num_blocks} blocks."
        )


def _space(folder: Path) -> dict[str, Any]:
    """Return the config node of the latent space of an autoencoder in a folder."""
    scale = read_json(folder / "config.json").get("scaling_factor", SCALE)
    if type(scale) not in (int, float) or not 0 < scale < 1e300:
        raise UserError(
            f"`scaling_factor` must be a number above 0 in {folder / 'config.json'}, got {str(scale)[:100]}."
        )
    autoencoder = {
        "_target_": "diffusers.AutoencoderKL.from_pretrained",
        "pretrained_model_name_or_path": str(folder.resolve()),
    }
    return {
        "_target_": "diffusion_lab.latents.Latents",
        "autoencoder": autoencoder,
        "scale": float(scale),
        "shift": 0.0,
    }


def _class_names(index: Mapping[str, Any], num_classes: int) -> list[str]:
    """Return the names of all classes of a pipeline; empty if it does not have them."""
    names = index.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(num_classes)}:
        return []
    return [str(names[str(number)]) for number in range(num_classes)]
