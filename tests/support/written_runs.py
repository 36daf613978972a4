"""Run folders with random weights, written without training."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from diffusion_lab import checkpoint_files
from diffusion_lab.paths import CONF
from diffusion_lab.runs import load as run_loading
from support.pipelines import mild

TINY = (
    "model.channels=8", "model.channel_multipliers=[1,2]", "model.num_blocks=1", "model.blocks.num_groups=4",
    "model.attention_resolutions=[14]", "schedule=cosine", "prediction=v", "callbacks.measure_distance=null",
)  # fmt: skip
"""Overrides of a U-Net for 28 x 28 images with ten thousand weights."""


def write_run(folder: Path, *overrides: str, step: int = 40) -> Path:
    """Write the run folder that `train` would write with these overrides, with random weights and EMA weights."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = run_loading.resolve(compose("train", overrides=[*overrides, f"run_folder={folder}"]))
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / "overrides.yaml")
    module = run_loading.build_untrained_module(config)
    for network in module.ema.networks.values():
        mild(network)
    nn.init.normal_(next(module.network.parameters()))  # other trained weights than in the average
    module.ema.num_updates = step
    (folder / "checkpoints").mkdir()
    content = {"state_dict": module.state_dict(), "global_step": step}
    checkpoint_files.write(content, folder / "checkpoints" / "last.ckpt")
    return folder
