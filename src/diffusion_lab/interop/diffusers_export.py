"""Export to a folder of `diffusers`: a pipeline whose images are those of a sampler of this package."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lab.interop import diffusers_dit, diffusers_unet, diffusers_unet_weights
from diffusion_lab.interop.diffusers_scheduler import scheduler_settings
from diffusion_lab.interop.own_settings import OwnUNet, require
from diffusion_lab.interop.weights_files import as_float32, write_tensors
from diffusion_lab.latents import Latents, Pixels, Space
from diffusion_lab.process import GaussianProcess, Prediction
from diffusion_lab.samplers import Sampler

VERSION = "0.36.0"
"""Earliest version of `diffusers` for which the folders are written."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, and what its images depend on.

    node: config node of the network, plain values.  state: its state_dict.
    """

    node: Mapping[str, Any]
    state: Mapping[str, Tensor]
    process: GaussianProcess
    prediction: Prediction
    sampler: Sampler
    space: Space

    @property
    def kind(self) -> str:
        """Name of the class of the network."""
        return str(self.node["_target_"]).rpartition(".")[2]


@dataclass(frozen=True)
class DiffusersFolder:
    """The content of a folder of `diffusers`.

    pipeline: class of the pipeline.  name: name of the part that is the network.
    network, scheduler: configs of the network and of the scheduler.  weights: weights of the network.
    class_names: names of the classes for a pipeline that takes labels.
    """

    pipeline: str
    name: str
    network: dict[str, Any]
    scheduler: dict[str, Any]
    weights: dict[str, Tensor]
    class_names: Sequence[str] = ()

    def write(self, folder: Path, space: Space) -> None:
        """Write the files to an existing folder.  space: latent space whose autoencoder a pipeline with one needs."""
        parts = {self.name: self.network["_class_name"], "scheduler": self.scheduler["_class_name"]}
        if isinstance(space, Latents):
            parts["vae"] = "AutoencoderKL"
            save_autoencoder(space, folder / "vae")
        index: dict[str, Any] = {"_class_name": self.pipeline, "_diffusers_version": VERSION}
        index |= {name: ["diffusers", kind] for name, kind in sorted(parts.items())}
        if self.class_names:
            index["id2label"] = {str(number): name for number, name in enumerate(self.class_names)}
        _write_json(index, folder / "model_index.json")
        _write_json(self.network, folder / self.name / "config.json")
        write_tensors(as_float32(self.weights), folder / self.name / WEIGHTS, {"format": "pt"})
        _write_json(self.scheduler, folder / "scheduler" / "scheduler_config.json")


def diffusers_folder(
    trained: TrainedNetwork, *, label: int | None = None, class_names: Sequence[str] = ()
) -> DiffusersFolder:
    """Return the folder of `diffusers` for a trained network.

    label: class of the images, for a conditional `UNet` that is exported as an unconditional one.
    class_names: names of the classes of the network.
    Raises UserError that names the setting for which `diffusers` has no counterpart.
    """
    kind = trained.kind
    require(kind in ("UNet", "DiT"), "model", "a choice of UNet or DiT", kind)
    scheduler = scheduler_settings(trained.process, trained.prediction, trained.sampler)
    scheduler["_diffusers_version"] = VERSION
    if kind == "DiT":
        return _dit_folder(trained, scheduler, class_names)
    return _unet_folder(trained, scheduler, label)


def save_autoencoder(space: Latents, folder: Path) -> None:
    """Write the autoencoder of a latent space, with the scale of the latents in its config."""
    space.autoencoder.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    _write_json(config | {"scaling_factor": space.scale}, folder / "config.json")


def _unet_folder(trained: TrainedNetwork, scheduler: dict[str, Any], label: int | None) -> DiffusersFolder:
    network, state = OwnUNet.of(trained.node), trained.state
    is_pixels = isinstance(trained.space, Pixels)
    require(is_pixels, "space", "pixels for a U-Net", type(trained.space).__name__)
    num_rows = network.labels.num_rows or None
    if label is not None:
        state, num_rows = diffusers_unet_weights.with_label(state, network, label), None
    adds_label = num_rows is not None and network.sinusoids.add_label
    require(not adds_label, "model.sinusoids.add_label", "false (or label=CLASS for the images of one class)", "true")
    settings = diffusers_unet.diffusers_settings(network, num_class_embeds=num_rows)
    state = diffusers_unet_weights.without_variance(state, network.in_channels)
    weights = diffusers_unet_weights.diffusers_weights(state, network)
    pipeline = scheduler["_class_name"].replace("Scheduler", "Pipeline")
    return DiffusersFolder(pipeline, "unet", settings | {"_diffusers_version": VERSION}, scheduler, weights)


def _dit_folder(trained: TrainedNetwork, scheduler: dict[str, Any], class_names: Sequence[str]) -> DiffusersFolder:
    settings = diffusers_dit.diffusers_settings(trained.node)
    space = trained.space
    require(isinstance(space, Latents), "space", "sd_latents for a DiT", type(space).__name__)
    shift = getattr(space, "shift", 0)
    require(shift == 0, "space.shift", "0", shift)
    state = diffusers_dit.without_variance(trained.state, trained.node)
    weights = diffusers_dit.diffusers_weights(state, trained.node)
    settings["_diffusers_version"] = VERSION
    return DiffusersFolder("DiTPipeline", "transformer", settings, scheduler, weights, class_names)


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
