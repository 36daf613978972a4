"""What the published files of improved-diffusion and guided-diffusion do not contain, by their names.

The values are those of the flags in the README.md of both repositories. Other files need them on the command line.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusion_lab.errors import UserError
from diffusion_lab.interop.imported import Options


@dataclass(frozen=True)
class Recipe:
    """Settings of a network that its file does not contain.

    resolution: side length of the images in pixels.
    schedule, num_timesteps: choice of the config group `schedule`, and its number of steps; None if they were typed.
    num_heads, head_channels: number of attention heads, or channels of a head.
    attention_order: see `openai_unet`.  rescaled: whether the network receives the step index times 1000 / T.
    data: choice of the config group `data`; None if the images are not known.  dropout: dropout in training.
    low_resolution: side length of the low-resolution image of an upsampler.  step: number of training steps.
    """

    resolution: int
    schedule: Literal["linear", "linear_scaled", "cosine"] | None
    num_timesteps: int = 1000
    num_heads: int | None = None
    head_channels: int | None = None
    attention_order: Literal["legacy", "new"] = "legacy"
    rescaled: bool = False
    data: str | None = None
    dropout: float = 0.0
    low_resolution: int | None = None
    step: int = 0

    @property
    def time_scale(self) -> float:
        return 1000 / self.num_timesteps if self.rescaled else 1.0

    def heads(self, channels: int) -> int:
        """Return the number of attention heads of a block with these channels."""
        return self.num_heads or max(1, channels // (self.head_channels or channels))


_ADM = Recipe(256, "linear", head_channels=64)
_LSUN = replace(_ADM, dropout=0.1)
_IMPROVED = Recipe(64, "cosine", 4000, num_heads=4, rescaled=True, data="imagenet64")
_CIFAR10 = replace(_IMPROVED, resolution=32, data="cifar10", dropout=0.3)
_IMPROVED_LSUN = Recipe(256, "linear", num_heads=1, data="lsun_bedroom")

FILES = {
    "64x64_diffusion.pt": replace(
        _ADM, resolution=64, schedule="cosine", attention_order="new", data="imagenet64", dropout=0.1
    ),
    "128x128_diffusion.pt": Recipe(128, "linear", num_heads=4, data="imagenet128"),
    "256x256_diffusion.pt": replace(_ADM, data="imagenet256"),
    "256x256_diffusion_uncond.pt": replace(_ADM, data="imagenet256"),
    "512x512_diffusion.pt": replace(_ADM, resolution=512, data="imagenet256"),
    "64_256_upsampler.pt": Recipe(256, "linear", num_heads=4, data="imagenet256", low_resolution=64),
    "128_512_upsampler.pt": replace(_ADM, resolution=512, data="imagenet256", low_resolution=128),
    "lsun_bedroom.pt": replace(_LSUN, data="lsun_bedroom"),
    "lsun_cat.pt": replace(_LSUN, data="lsun_cat"),
    "lsun_horse.pt": _LSUN,
    "lsun_horse_nodropout.pt": _ADM,
    "64x64_classifier.pt": replace(_ADM, resolution=64, schedule="cosine", data="imagenet64"),
    "128x128_classifier.pt": replace(_ADM, resolution=128, data="imagenet128"),
    "256x256_classifier.pt": replace(_ADM, data="imagenet256"),
    "512x512_classifier.pt": replace(_ADM, resolution=512, data="imagenet256"),
    "imagenet64_uncond_100M_1500K.pt": _IMPROVED,
    "imagenet64_uncond_vlb_100M_1500K.pt": _IMPROVED,
    "imagenet64_cond_270M_250K.pt": replace(_IMPROVED, rescaled=False),
    "cifar10_uncond_50M_500K.pt": _CIFAR10,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR10,
    "upsample_cond_500K.pt": Recipe(256, "linear_scaled", 4000, num_heads=4, data="imagenet256", low_resolution=64),
    "lsun_uncond_100M_1200K_bs128.pt": _IMPROVED_LSUN,
    "lsun_uncond_100M_2400K_bs64.pt": _IMPROVED_LSUN,
}


def recipe_for(file: Path, options: Options, *, rescaled: bool, resolution: int | None = None) -> Recipe:
    """Return the settings of a file by its name and by what was typed, which counts more.

    rescaled: `Recipe.rescaled` of a file with another name.  resolution: resolution that its tensors determine.
    Raises UserError for a setting that neither gives.
    """
    known, side = FILES.get(file.name), options.resolution or resolution
    has_heads = options.num_heads is not None or options.head_channels is not None
    if known is None:
        _require(side is not None, "resolution", "resolution=64", file)
        _require("schedule" in options.given, "schedule", "schedule=linear or schedule=cosine", file)
        _require(has_heads, "num_heads or head_channels", "num_heads=4 or head_channels=64", file)
        known = Recipe(side or 1, None, options.num_timesteps, rescaled=rescaled)
    if "schedule" in options.given or "schedule.num_timesteps" in options.given:
        known = replace(known, schedule=None, num_timesteps=options.num_timesteps)
    if has_heads:
        known = replace(known, num_heads=options.num_heads, head_channels=options.head_channels)
    order = options.attention_order or known.attention_order
    return replace(known, resolution=side or known.resolution, attention_order=order, step=_step(file.name))


def _require(is_given: bool, setting: str, examples: str, file: Path) -> None:
    if not is_given:
        raise UserError(
            f"{setting} must be given ({examples}) for {file}, because the file does not contain it and its name is "
            "not the name of a published file."
        )


def _step(name: str) -> int:
    """Return the number of training steps in the name of a file; 0 if it has none."""
    if found := re.search(r"_(\d+)K(_bs\d+)?\.pt$", name):
        return 1000 * int(found[1])
    found = re.fullmatch(r"(?:ema_[\d.]+_|model)(\d{1,9})\.pt", name)
    return int(found[1]) if found else 0
