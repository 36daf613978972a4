"""Export of any network to a folder with safetensors weights and a plain config, and its import."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lab import __version__
from diffusion_lab.errors import UserError
from diffusion_lab.interop.foreign_config import read_json
from diffusion_lab.interop.weights_files import read_tensors, write_tensors

FORMAT = "diffusion_lab"
"""Value of the key `format` in the config, which distinguishes the folder from those of other libraries."""

CONFIG, WEIGHTS, AUTOENCODER = "config.json", "model.safetensors", "vae"

CONFIG_NODES = (
    *("model", "schedule", "prediction", "process", "variance", "sampler", "time_grid", "clipping"),
    *("space", "conditioning", "low_resolution", "masking", "guidance_scale"),
)
"""Keys of the config that are config nodes with plain values, as in config.yaml of a run."""

GUIDANCE = ("interval", "rescale", "num_channels")
"""Keys of `guidance` in the config: the settings of the guidance that are not other networks."""

NODES = (*CONFIG_NODES, "guidance", "data", "class_names", "step", "weights")
"""Keys of the config."""

REQUIRED = ("model", "schedule", "prediction", "process", "variance", "sampler", "space")


def write(folder: Path, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write settings and weights to an existing folder.

    settings: plain values by the names in NODES.  state: state_dict of the network.
    """
    content = {"format": FORMAT, "version": __version__, **{name: settings[name] for name in NODES if name in settings}}
    (folder / CONFIG).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_tensors(state, folder / WEIGHTS, {"format": "pt"})


def recognizes(path: Path) -> bool:
    """Return whether a path is a folder that `write` wrote."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("format") == FORMAT


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the weights in a folder.  The weights are those that were written, to the bit.

    The settings name classes: `runs.trust` refuses those of other packages when it reads the config of the run.
    Raises UserError if the folder is damaged or was not written by `write`.
    """
    content = read_json(path / CONFIG)
    if content.get("format") != FORMAT:
        raise UserError(f"{path / CONFIG} must have the format {FORMAT}, got {str(content.get('format'))[:100]}.")
    if missing := [name for name in REQUIRED if name not in content]:
        raise UserError(f"{path / CONFIG} must have the settings {', '.join(REQUIRED)}, got no {missing[0]}.")
    settings = {name: content[name] for name in NODES if name in content}
    if odd := [name for name in REQUIRED if not isinstance(settings[name], dict) or "_target_" not in settings[name]]:
        raise UserError(f"{path / CONFIG} must name a class in `{odd[0]}`, got {str(settings[odd[0]])[:100]}.")
    if (path / AUTOENCODER).is_dir():
        settings["space"] = with_autoencoder(settings["space"], (path / AUTOENCODER).resolve())
    return settings, read_tensors(path / WEIGHTS)


def with_autoencoder(space: Mapping[str, Any], folder: Path | str) -> dict[str, Any]:
    """Return the config node of a latent space with its autoencoder in a folder."""
    autoencoder = {
        "_target_": "diffusers.AutoencoderKL.from_pretrained",
        "pretrained_model_name_or_path": str(folder),
    }
    return {**space, "autoencoder": autoencoder}
