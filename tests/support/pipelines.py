"""Images of pipelines of `diffusers` and of our samplers, from the same generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Network
from diffusion_lab.samplers import Sampler

SEED = 3


class GeneratorNoise:
    """Noise in the order in which the pipelines draw it from their generator."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(SEED)

    def draw(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)


def as_array(images: Tensor) -> np.ndarray:
    """Images [B, C, H, W] in [-1, 1] as the pipelines return them: [B, H, W, C] in [0, 1]."""
    array: np.ndarray = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return array


def drawn_by_pipeline(pipeline: Any, num_images: int = 2, **arguments: Any) -> np.ndarray:
    """Images of a pipeline with the output type np."""
    pipeline.set_progress_bar_config(disable=True)
    if "class_labels" not in arguments:
        arguments["batch_size"] = num_images
    generator = torch.Generator().manual_seed(SEED)
    images: np.ndarray = pipeline(generator=generator, output_type="np", **arguments).images
    return images


def built(settings: Mapping[str, Any], state: Mapping[str, Tensor], num_steps: int) -> tuple[Denoiser, Sampler]:
    """The denoiser and the sampler of imported settings and weights."""
    network: Network = instantiate(settings["model"], _convert_="all")
    network.load_state_dict(state)
    parts = {name: instantiate(settings[name], _convert_="all") for name in ("process", "prediction")}
    sampler = instantiate({**settings["sampler"], "num_steps": num_steps}, _convert_="all")
    return Denoiser(network.eval(), **parts), sampler


def drawn_by_sampler(denoiser: Denoiser, sampler: Sampler, num_images: int = 2, label: Tensor | None = None) -> Tensor:
    """Images of a sampler in [-1, 1], or latents."""
    network: Any = denoiser.network
    shape = (num_images, network.in_channels, network.resolution, network.resolution)
    return sampler.sample(denoiser, GeneratorNoise(*shape), label)


def mild(network: nn.Module) -> nn.Module:
    """Fill a network with weights that are 0 nowhere, and with outputs small enough that DDIM amplifies no rounding."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            size = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            mean = 1.0 if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and name == "weight" else 0.0
            parameter.data = mean + size * torch.randn(parameter.shape, generator=generator)
    last: Any = next(getattr(network, name) for name in ("conv_out", "proj_out_2", "head") if hasattr(network, name))
    for parameter in last.parameters():
        parameter.data *= 0.3
    return network.eval().requires_grad_(False)


def saved(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder
