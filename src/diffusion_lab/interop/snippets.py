"""Code that loads exported folders, and sentences about their differences from the run, for model cards."""

import json
import re
import shlex
from collections.abc import Sequence

from diffusion_lab.interop.diffusers_export import VERSION, DiffusersFolder, TrainedNetwork
from diffusion_lab.interop.diffusers_scheduler import fallback_grid, is_ancestral
from diffusion_lab.interop.own_settings import OwnUNet
from diffusion_lab.networks import Network
from diffusion_lab.samplers import DDIM, NoClipping

Usage = tuple[str, str]
"""Language and text of a code block."""

INSTALL = "pip install '.[export]'  # in a clone of Diffusion Lab; its README describes the installation of a wheel"
"""Installation of the package with what reads safetensors."""


def diffusers_usage(folder: DiffusersFolder, trained: TrainedNetwork, name: str) -> list[Usage]:
    """Return code that saves images with a folder of `diffusers`.  name: name of the folder, or its repository."""
    install = ("bash", f"pip install torch 'diffusers>={VERSION}' safetensors pillow")
    return [install, ("python", _diffusers_code(folder, trained, name))]


def _diffusers_code(folder: DiffusersFolder, trained: TrainedNetwork, name: str) -> str:
    steps = len(trained.sampler.times)
    if folder.name == "transformer":
        call = f"class_labels=[207, 360], guidance_scale=1.0, num_inference_steps={steps}"
        return _pipeline(folder.pipeline, name, call)
    if folder.network["num_class_embeds"] is None:
        call = ", ".join(["batch_size=4", f"num_inference_steps={steps}", *_step_arguments(trained)])
        return _pipeline(folder.pipeline, name, call)
    return _loop(folder, trained, name, steps)


def diffusers_notes(trained: TrainedNetwork, folder: DiffusersFolder) -> list[str]:
    """Return what differs between a folder of `diffusers` and the run, one sentence each."""
    sampler, notes = trained.sampler, list[str]()
    if trained.node["out_channels"] > trained.node["in_channels"]:
        notes.append(
            "The network was trained with a learned variance. DDIM needs no variance, so that the output channels "
            "for the variance are left out."
        )
    if not isinstance(sampler, DDIM) and not is_ancestral(sampler):
        notes.append(f"The pipeline samples with DDIM instead of the sampler of the run ({type(sampler).__name__}).")
    elif (grid := fallback_grid(sampler)) is not None:
        choice = type(grid).__name__.removesuffix("Times").lower()
        notes.append(
            f"The pipeline samples at the times of time_grid={choice} instead of the time grid of the run "
            f"({type(sampler.time_grid).__name__})."
        )
    if any("use_clipped_model_output" in argument for argument in _step_arguments(trained)):
        notes.append(
            "The sampler of the run computes the noise in a step from the clipped image, as the pipeline does with "
            "use_clipped_model_output=True."
        )
    if folder.name == "unet" and folder.network["num_class_embeds"] is not None:
        notes.append(
            "The network takes a class label, which DDPMPipeline and DDIMPipeline do not pass. An export with "
            "label=CLASS is a network of one class, for these pipelines."
        )
    return notes


def own_usage(name: str, network: Network, guidance_scale: float, label: str | None) -> list[Usage]:
    """Return code that imports a folder of format=safetensors and saves images.

    name: name of the folder, or its repository.
    network: the exported network.  guidance_scale: that of the run.
    label: name of one of its classes, for an example; None if they have no names.
    """
    folder = name.rpartition("/")[2]
    run = re.sub(r"[^\w.-]+", "_", folder).strip("_") + "_run"
    commands = [
        *([f"hf download {name} --local-dir {folder}"] if folder != name else []),
        f"diffusion-lab import {shlex.quote(folder)} format=safetensors output={run}",
    ]
    arguments, classes, comments = ["8"], list[str](), ["# image k has seed k; the settings of the sampler are stored"]
    if network.condition_channels:
        arguments.append("Condition(image=condition)")
        classes.append("Condition")
        comments.append("# condition: 8 condition images that you provide, float [8, C, h, w] in [-1, 1]")
    if network.labels.num_classes:
        scale = f"guidance_scale={guidance_scale:g}"
        arguments.append(scale)
        choice = "0" if label is None else _quoted(label)
        comments += [
            f"# {scale} is the scale of the run; others are accepted, and without it, sample() uses no guidance",
            f"# the classes in turn; one class: module.sample(8, label={choice}, {scale})",
        ]
    code = [
        *("from PIL import Image", "", f"from diffusion_lab import {', '.join([*classes, 'load_module', 'to_uint8'])}"),
        *("", f'module = load_module("{run}")', *comments, f"images = to_uint8(module.sample({', '.join(arguments)}))"),
        _saving("image.permute(1, 2, 0).squeeze(2).numpy()"),
    ]
    return [("bash", INSTALL), ("bash", "\n".join(commands)), ("python", "\n".join(code))]


def onnx_usage(inputs: Sequence[str], network: Network) -> list[Usage]:
    """Return code that evaluates an ONNX file.  inputs: names of the inputs of the network."""
    side = network.resolution
    values = {
        "x_t": f"noise.standard_normal((4, {network.in_channels}, {side}, {side}), dtype=np.float32),"
        "  # alpha_t x_0 + sigma_t noise",
        "time": "np.full(4, 500, dtype=np.float32),"
        "  # as Network.forward of Diffusion Lab defines it, 0 to T - 1 for T discrete steps",
        "label": "np.zeros(4, dtype=np.int64),  # numbers of classes",
    }
    lines = "\n".join(f'    "{name}": {values[name]}' for name in inputs)
    code = f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
noise = np.random.default_rng(0)
inputs = {{
{lines}
}}
output = session.run(None, inputs)[0]  # the output of the network for each x_t, not an image"""
    return [("bash", "pip install numpy onnxruntime"), ("python", code)]


def _pipeline(kind: str, name: str, call: str) -> str:
    return (
        f"import torch\nfrom diffusers import {kind}\n\n"
        f"pipeline = {kind}.from_pretrained({_quoted(name)})\n"
        f"images = pipeline({call}, generator=torch.Generator().manual_seed(0)).images\n"
        "for k, image in enumerate(images):\n"
        '    image.save(f"{k}.png")'
    )


def _loop(folder: DiffusersFolder, trained: TrainedNetwork, name: str, steps: int) -> str:
    """Return code that draws images of classes with the parts of a pipeline."""
    scheduler = folder.scheduler["_class_name"]
    labels = [k % OwnUNet.of(trained.node).labels.num_classes for k in range(4)]
    side, channels = folder.network["sample_size"], folder.network["in_channels"]
    arguments = ", ".join(["output", "t", "images", *_step_arguments(trained)])
    return f"""import torch
from diffusers import {scheduler}, UNet2DModel
from PIL import Image

network = UNet2DModel.from_pretrained({_quoted(name)}, subfolder="unet")
scheduler = {scheduler}.from_pretrained({_quoted(name)}, subfolder="scheduler")
scheduler.set_timesteps({steps})
label, generator = torch.tensor({labels}), torch.Generator().manual_seed(0)
images = torch.randn(4, {channels}, {side}, {side}, generator=generator)
for t in scheduler.timesteps:
    with torch.no_grad():
        output = network(images, t, class_labels=label).sample
    images = scheduler.step({arguments}).prev_sample
pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
{_saving("pixels[k].permute(1, 2, 0).squeeze(2).numpy()")}"""


def _saving(pixels: str) -> str:
    """Return code that saves images as PNG files.  pixels: expression for the pixels of image k, uint8 [H, W, C]."""
    return f'for k, image in enumerate(images):\n    Image.fromarray({pixels}).save(f"{{k}}.png")'


def _quoted(text: str) -> str:
    """Return a text as a string of Python."""
    return json.dumps(text, ensure_ascii=False)


def _step_arguments(trained: TrainedNetwork) -> list[str]:
    """Return the arguments of a step of DDIMScheduler that its config does not contain."""
    sampler = trained.sampler
    if is_ancestral(sampler):
        return []
    eta = sampler.eta if isinstance(sampler, DDIM) else 0.0
    after_clipping = not isinstance(sampler, DDIM) or sampler.noise_after_clipping
    clips = after_clipping and not isinstance(sampler.clipping, NoClipping)
    return [f"eta={eta}", *(["use_clipped_model_output=True"] if clips else [])]
