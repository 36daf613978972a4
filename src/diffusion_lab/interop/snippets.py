"""Code that loads exported folders, and sentences about their differences from the run, for model cards."""

from collections.abc import Sequence

from diffusion_lab.interop.diffusers_export import DiffusersFolder, TrainedNetwork
from diffusion_lab.interop.diffusers_scheduler import fallback_grid, is_ancestral
from diffusion_lab.samplers import DDIM, NoClipping

Usage = tuple[str, str]
"""Language and text of a code block."""


def diffusers_usage(folder: DiffusersFolder, trained: TrainedNetwork, name: str) -> list[Usage]:
    """Return code that draws images with a folder of `diffusers`.  name: name or path of the folder."""
    steps = len(trained.sampler.times)
    if folder.name == "transformer":
        call = f"class_labels=[207, 360], guidance_scale=1.0, num_inference_steps={steps}"
        return [("python", _pipeline(folder.pipeline, name, call))]
    if folder.network["num_class_embeds"] is None:
        call = ", ".join(["batch_size=4", f"num_inference_steps={steps}", *_step_arguments(trained)])
        return [("python", _pipeline(folder.pipeline, name, call))]
    return [("python", _loop(folder, trained, name, steps))]


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


def own_usage(name: str) -> list[Usage]:
    """Return code that draws images with a folder of format=safetensors.  name: name or path of the folder."""
    command = f"diffusion-lab import {name} format=safetensors output=RUN"
    lines = ("from diffusion_lab import load_module", "", 'module = load_module("RUN")')
    code = "\n".join([*lines, "images = module.sample(range(4))  # in [-1, 1]"])
    return [("bash", command), ("python", code)]


def onnx_usage(inputs: Sequence[str]) -> list[Usage]:
    """Return code that evaluates an ONNX file.  inputs: names of the inputs of the network."""
    values = {
        "x_t": "x_t,  # float32 [B, C, H, W]: alpha_t x_0 + sigma_t noise",
        "time": "time,  # float32 [B]: as Network.forward of Diffusion Lab defines it, 0 to T - 1 for T discrete steps",
        "label": "label,  # int64 [B]",
    }
    lines = "\n".join(f'    "{name}": {values[name]}' for name in inputs)
    code = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\ninputs = {{\n{lines}\n}}\n'
    return [("python", f"{code}output = session.run(None, inputs)[0]")]


def _pipeline(kind: str, name: str, call: str) -> str:
    return (
        f"import torch\nfrom diffusers import {kind}\n\n"
        f'pipeline = {kind}.from_pretrained("{name}")\n'
        f"images = pipeline({call}, generator=torch.Generator().manual_seed(0)).images"
    )


def _loop(folder: DiffusersFolder, trained: TrainedNetwork, name: str, steps: int) -> str:
    """Return code that draws images of classes with the parts of a pipeline."""
    scheduler = folder.scheduler["_class_name"]
    side, channels = folder.network["sample_size"], folder.network["in_channels"]
    arguments = ", ".join(["output", "t", "images", *_step_arguments(trained)])
    return f"""import torch
from diffusers import {scheduler}, UNet2DModel

network = UNet2DModel.from_pretrained("{name}", subfolder="unet")
scheduler = {scheduler}.from_pretrained("{name}", subfolder="scheduler")
scheduler.set_timesteps({steps})
label, generator = torch.tensor([0, 1, 2, 3]), torch.Generator().manual_seed(0)
images = torch.randn(4, {channels}, {side}, {side}, generator=generator)
for t in scheduler.timesteps:
    with torch.no_grad():
        output = network(images, t, class_labels=label).sample
    images = scheduler.step({arguments}).prev_sample  # in [-1, 1]"""


def _step_arguments(trained: TrainedNetwork) -> list[str]:
    """Return the arguments of a step of DDIMScheduler that its config does not contain."""
    sampler = trained.sampler
    if is_ancestral(sampler):
        return []
    eta = sampler.eta if isinstance(sampler, DDIM) else 0.0
    after_clipping = not isinstance(sampler, DDIM) or sampler.noise_after_clipping
    clips = after_clipping and not isinstance(sampler.clipping, NoClipping)
    return [f"eta={eta}", *(["use_clipped_model_output=True"] if clips else [])]
