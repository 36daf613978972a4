"""The network of a folder of `diffusers`, computed by `diffusers`, with DDIM of its scheduler."""

from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.computed_witness import Original, Trajectory
from diffusion_lab.interop.diffusers_dit import is_dit
from diffusion_lab.interop.diffusers_folder import MODELS, recognizes
from diffusion_lab.interop.diffusers_scheduler import SCHEDULERS
from diffusion_lab.interop.foreign_config import read_json
from diffusion_lab.paths import install_command

NUM_STEPS = 20
"""Number of DDIM steps of a trajectory."""


def load(folder: Path) -> Original:
    """Load the network of a folder, and its scheduler if there is one.

    Raises UserError if the folder does not exist or was not written by `diffusers`, and without this package.
    """
    if not folder.is_dir() or not recognizes(folder):
        raise UserError(f"`run` must be imported from a folder of `diffusers` for against=diffusers, got {folder}.")
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"against=diffusers requires the package diffusers; {install_command('diffusers')} installs it."
        ) from error
    place = next((folder / name for name in MODELS if (folder / name).is_dir()), folder)
    name = "DiTTransformer2DModel" if is_dit(read_json(place / "config.json")) else "UNet2DModel"
    network = getattr(diffusers, name).from_pretrained(place, local_files_only=True).float().eval()

    def output(x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        labels = {} if label is None else {"class_labels": label}
        result: Tensor = network(x, time.long(), **labels).sample
        return result

    file = next((file for file in _scheduler_files(folder) if file.is_file()), None)
    return Original(output, None if file is None else _trajectory(file, diffusers))


def _scheduler_files(folder: Path) -> list[Path]:
    return [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]


def _trajectory(file: Path, diffusers: Any) -> Trajectory | None:
    """Return DDIM with the variances, the prediction and the clipping of a scheduler; None for other schedulers."""
    content = read_json(file)
    if content.get("_class_name") not in SCHEDULERS:
        return None
    scheduler = getattr(diffusers, content["_class_name"]).from_config(content)
    clip = bool(scheduler.config.clip_sample) and not scheduler.config.thresholding
    ddim = diffusers.DDIMScheduler(
        num_train_timesteps=len(scheduler.betas),
        trained_betas=scheduler.betas.tolist(),
        prediction_type=scheduler.config.prediction_type,
        clip_sample=clip,
    )
    ddim.set_timesteps(min(NUM_STEPS, len(scheduler.betas)))

    def step(output: Tensor, time: int, x_t: Tensor) -> Tensor:
        without_variance = output[:, : x_t.shape[1]]
        images: Tensor = ddim.step(without_variance, time, x_t, use_clipped_model_output=True).prev_sample
        return images

    return Trajectory(ddim.timesteps.tolist(), clip, step)
