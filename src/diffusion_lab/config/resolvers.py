"""OmegaConf resolvers for the files in conf/, used as ${name:arguments}.  Importing this module registers them."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_lab.config import overrides
from diffusion_lab.config.secrets import environment
from diffusion_lab.config.trusted_packages import trusted_packages
from diffusion_lab.distributed import launch, slurm_job
from diffusion_lab.files.image_folders import num_class_folders
from diffusion_lab.paths import PACKAGE, logs_folder


def _fastest_cpu_precision() -> str:
    """Return bf16-mixed on processors with bfloat16 instructions (1.5 to 1.8 times faster), else 32-true."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "32-true"
    return "bf16-mixed" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) else "32-true"


def _has_gpu() -> bool:
    """Return whether this process can use an NVIDIA GPU, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def _fastest_accelerator() -> str:
    return "cuda" if _has_gpu() else "cpu"


def _fastest_precision() -> str:
    """Return bf16-mixed if the GPU, or the processor without a GPU, has bfloat16 instructions, else 32-true."""
    if not _has_gpu():
        return _fastest_cpu_precision()
    return "bf16-mixed" if _compute_capability() >= 8 else "32-true"


@cache
def _compute_capability() -> float:
    """Return the lowest CUDA compute capability of the GPUs; 0 if torch cannot use them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in output.split())
    except (OSError, ValueError, subprocess.SubprocessError):  # for example in a container without nvidia-smi
        from torch import cuda

        return float(cuda.get_device_capability()[0]) if cuda.is_available() else 0.0


def _num_schedule_steps(schedule: DictConfig) -> int:
    """Return the number of steps of a discrete schedule, or 1000, as in the papers, for a continuous schedule."""
    num_steps = len(schedule.betas or ()) if "betas" in schedule else schedule.get("num_timesteps", 1000)
    return num_steps if _are_sizes(num_steps) else 1


def _output_channels(channels: int, variance: DictConfig) -> int:
    """Return the number of output channels of a network: twice the image channels if the variance is learned."""
    is_learned = str(variance["_target_"]).rpartition(".")[2].startswith("Learned")
    return 2 * channels if is_learned and _are_sizes(channels) else channels


def _masked_channels(channels: int, *, _root_: DictConfig) -> int:
    """Return the number of channels of an image, or of its latents, and its mask."""
    channels = _encoded_channels(channels, _root_)
    return channels + 1 if _are_sizes(channels) else channels


def _condition_channels(*, _root_: DictConfig) -> int:
    """Return the number of channels of the paired images of the data set, or of their latents; 0 without them."""
    data: Any = _root_.get("data") or {}
    has_pairs = data.get("condition_column") is not None or data.get("condition_path") is not None
    return _encoded_channels(data.condition_channels, _root_) if has_pairs else 0


def _encoded_channels(channels: int, root: DictConfig) -> int:
    """Return `channels` in pixel space, and the number of channels of the latents in a latent space."""
    in_pixels = str((root.get("space") or {}).get("_target_", ".Pixels")).endswith(".Pixels")
    return channels if in_pixels else root.model.get("in_channels", channels)


def _eighth(resolution: int) -> int:
    """Return the resolution of the latents of an image."""
    return resolution // 8 if _are_sizes(resolution) else resolution


def _label_rows(labels: DictConfig) -> int | None:
    """Return the rows of a label embedding: num_classes, plus 1 if labels are dropped; None without classes."""
    return labels.num_classes + (labels.dropout > 0) if labels.num_classes else None


def _unless_own_images(number: int, *, _parent_: DictConfig) -> int:
    """Return `number`, or 0 if the data set `_parent_` is a folder of the user, which may contain few images."""
    return number if _parent_.get("hub_name") or str(_parent_.get("path")).startswith(str(PACKAGE)) else 0


def _adm_multipliers(resolution: int) -> ListConfig:
    """Return the channel multipliers from the code of Dhariwal & Nichol (2021); [1, 2, 3] for other resolutions."""
    published: dict[int, list[float]] = {
        512: [0.5, 1, 1, 2, 2, 4, 4],
        256: [1, 1, 2, 2, 4, 4],
        128: [1, 1, 2, 3, 4],
        64: [1, 2, 3, 4],
    }
    return OmegaConf.create(published.get(resolution, [1, 2, 3]))


LOWEST_SIDE = 8
"""Side of the lowest level of small U-Nets: attention between 64 positions takes little time."""


def _patch_side(resolution: int, smallest: int, largest_map: int) -> int:
    """Return the side of the pixel patches of a U-Net, so that its first level has at most largest_map^2 positions.

    The side is `smallest`, doubled as long as the feature map is larger and can still be halved for a second level.
    """
    side = smallest
    while _are_sizes(resolution, side) and resolution // side > largest_map and resolution % (4 * side) == 0:
        side *= 2
    return side


def _unet_levels(multipliers: ListConfig, resolution: int, patch_size: int) -> ListConfig:
    """Return the channel multipliers of a U-Net, with the last one repeated until the lowest level is small."""
    levels = list(multipliers)
    while (side := _side(resolution, patch_size, len(levels))) is not None and side > LOWEST_SIDE and side % 2 == 0:
        levels.append(levels[-1])
    return OmegaConf.create(levels)


def _attention_sides(
    wanted: ListConfig, resolution: int, patch_size: int, multipliers: ListConfig | None
) -> ListConfig:
    """Return `wanted` if a level has one of these sides, else the largest side of a level below them, or the lowest."""
    if multipliers is None:  # refused later, with its own name
        return wanted
    sides = [_side(resolution, patch_size, number) for number in range(1, len(multipliers) + 1)]
    if None in sides or set(wanted) & set(sides):
        return wanted
    return OmegaConf.create([max((side for side in sides if side and side <= max(wanted)), default=sides[-1])])


def _side(resolution: int, patch_size: int, num_levels: int) -> int | None:
    """Return the side of the lowest of num_levels levels; None if the resolution cannot be divided so often."""
    if not _are_sizes(resolution, patch_size):
        return None
    side, rest = divmod(resolution, patch_size * 2 ** (num_levels - 1))
    return None if rest or not side else side


def _are_sizes(*values: object) -> bool:
    """Return whether all values are whole numbers above 0. Other values are refused later, with their own names."""
    return all(isinstance(value, int) and value > 0 for value in values)


def _interval(num_events: int, max_steps: int) -> int:
    """Return the number of steps between `num_events` evenly spaced events; 5000 for a run without max_steps."""
    return max(1, max_steps // num_events) if max_steps > 0 else 5000


OmegaConf.register_new_resolver("oc.env", environment, replace=True)
OmegaConf.register_new_resolver("logs_folder", lambda: str(logs_folder()), replace=True)
OmegaConf.register_new_resolver("trusted_packages", trusted_packages, replace=True)
OmegaConf.register_new_resolver("embedded", lambda name: str(PACKAGE / "data" / "embedded" / name), replace=True)
OmegaConf.register_new_resolver("fastest_cpu_precision", _fastest_cpu_precision, replace=True)
OmegaConf.register_new_resolver("fastest_accelerator", _fastest_accelerator, replace=True)
OmegaConf.register_new_resolver("fastest_precision", _fastest_precision, replace=True)
OmegaConf.register_new_resolver("num_local_ranks", lambda: launch.num_local_ranks() or "auto", replace=True)
OmegaConf.register_new_resolver("num_nodes", launch.num_nodes, replace=True)
OmegaConf.register_new_resolver("fraction_of", lambda fraction, steps: int(fraction * steps), replace=True)
OmegaConf.register_new_resolver("interval", _interval, replace=True)
OmegaConf.register_new_resolver("at_most", min, replace=True)
OmegaConf.register_new_resolver("first", lambda group: next(iter(group.values())), replace=True)
OmegaConf.register_new_resolver("num_schedule_steps", _num_schedule_steps, replace=True)
OmegaConf.register_new_resolver("output_channels", _output_channels, replace=True)
OmegaConf.register_new_resolver("masked_channels", _masked_channels, replace=True)
OmegaConf.register_new_resolver("condition_channels", _condition_channels, replace=True)
OmegaConf.register_new_resolver("eighth", _eighth, replace=True)
OmegaConf.register_new_resolver("label_rows", _label_rows, replace=True)
OmegaConf.register_new_resolver("if_labels", lambda labels, yes, no: yes if labels.num_classes else no, replace=True)
OmegaConf.register_new_resolver("unless_own_images", _unless_own_images, replace=True)
OmegaConf.register_new_resolver("adm_multipliers", _adm_multipliers, replace=True)
OmegaConf.register_new_resolver("patch_side", _patch_side, replace=True)
OmegaConf.register_new_resolver("unet_levels", _unet_levels, replace=True)
OmegaConf.register_new_resolver("attention_sides", _attention_sides, replace=True)
OmegaConf.register_new_resolver("num_class_folders", num_class_folders, replace=True)
OmegaConf.register_new_resolver("job_name", slurm_job.job_name, replace=True)
OmegaConf.register_new_resolver("sweep_folder", overrides.sweep_folder_name, replace=True)
OmegaConf.register_new_resolver("run_folder_name", overrides.run_folder_name, replace=True)
