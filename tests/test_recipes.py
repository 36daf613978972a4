"""Every recipe in conf/experiment states its claim and its commands, builds, and trains a step when made small."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.compilation import without_acceleration
from diffusion_lab.config.validation import argument_problems
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.paths import CONF
from diffusion_lab.randomness import Draws
from diffusion_lab.runs.load import build_module, instantiate_node, resolve
from support.representatives import with_representatives

RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAPERS = [name for name in RECIPES if re.match(r"(ddpm|iddpm|adm|edm|dit|classifier_imagenet)", name)]
REQUIRED = {"adm_g_imagenet256": ["classifier=none"]}
SMALL = {  # only width, depth and batch size change, no other option
    "UNet": ["model.channels=32", "model.num_blocks=1"],
    "HalfUNet": ["model.channels=64", "model.num_blocks=1"],
    "DiT": ["model.channels=64", "model.depth=2"],
}
ONE_OF_EACH_KIND = (
    "ddpm_cifar10", "iddpm_cifar10_vlb", "edm_cifar10", "adm_ablation", "dit_xl_2_imagenet256",
    "classifier_imagenet128",
)  # fmt: skip
WIDER = {"adm_imagenet64": 64, "adm_imagenet128": 64, "iddpm_imagenet64": 64}  # divisible by their heads


def command_of(name: str) -> str:
    return "train_classifier" if name.startswith("classifier") else "train"


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    all_overrides = [f"experiment={name}", "run_folder=somewhere", *REQUIRED.get(name, []), *overrides]
    return resolve(compose(command_of(name), overrides=all_overrides))


@pytest.fixture(autouse=True)
def initialized_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an autoencoder with the architecture of Stable Diffusion's and few channels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    network = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2, layers_per_block=1,
        down_block_types=4 * ("DownEncoderBlock2D",), up_block_types=4 * ("UpDecoderBlock2D",),
    )  # fmt: skip
    network.save_pretrained(folder)
    return folder


def head(name: str) -> str:
    return (CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_states_its_command(name: str) -> None:
    assert f"python src/{command_of(name)}.py experiment={name}" in head(name)


@pytest.mark.parametrize("name", PAPERS)
def test_a_published_recipe_states_its_paper_its_expected_result_and_its_commands(name: str) -> None:
    text = head(name)
    assert re.search(r"[A-Z]\w+( & \w+| et al\.)? \(20\d\d\), (Table|Tables|Figure|section) ", text)
    assert "Look at " in text
    assert "Cost: " in text
    assert "trainer=gpu" in text
    assert "trainer=ddp" in text
    assert "hydra/launcher=slurm" in text
    assert re.search(r"(FID|bits/dim|accuracy)", text)


ADM: dict[str, Any] = {
    "process.schedule.num_timesteps": 1000, "optimizer.weight_decay": 0.0, "conditioning.dropout": 0.0,
    "lr_schedule.num_warmup_steps": 0, "trainer.gradient_clip_val": None, "sampler.num_steps": 250,
    "ema.decays.main.decay": 0.9999, "data.fit": "adm", "data.horizontal_flip": True, "objective.bound_weight": 0.001,
    "model.blocks.scale_shift": True, "model.blocks.resize": "residual", "model.attention_resolutions": [32, 16, 8],
    "model.sinusoids.kind": "adm", "model.sinusoids.time_scale": 1.0,
}  # fmt: skip
ADM_CLASSIFIER: dict[str, Any] = {
    "lr_schedule._target_": "diffusion_lab.training.LinearWithWarmup", "lr_schedule.num_warmup_steps": 0,
    "trainer.gradient_clip_val": None, "model.channels": 128, "model.blocks.head_channels": 64,
    "optimizer.decoupled_weight_decay": True, "process.schedule.num_timesteps": 1000,
}  # fmt: skip
DDPM: dict[str, Any] = {
    "process.schedule.beta_start": 1e-4, "process.schedule.beta_end": 0.02, "process.schedule.num_timesteps": 1000,
    "optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.0, "lr_schedule.num_warmup_steps": 5000,
    "trainer.gradient_clip_val": 1.0, "sampler.num_steps": 1000, "ema.decays.main.decay": 0.9999,
    "model.num_blocks": 2, "model.attention_resolutions": [16], "model.blocks.resize": "strided",
    "model.sinusoids.kind": "ddpm",
}  # fmt: skip
DDPM_256 = DDPM | {
    "data.batch_size": 64, "optimizer.lr": 2e-5, "model.blocks.dropout": 0.0,
    "model.channel_multipliers": [1, 1, 2, 2, 4, 4], "variance._target_": "diffusion_lab.process.FixedSmall",
}  # fmt: skip
IDDPM: dict[str, Any] = {
    "process.schedule.num_timesteps": 4000, "process.schedule._target_": "diffusion_lab.process.CosineSchedule",
    "data.batch_size": 128, "data.horizontal_flip": False, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.0,
    "lr_schedule.num_warmup_steps": 0, "trainer.gradient_clip_val": None, "ema.decays.main.decay": 0.9999,
    "sampler.num_steps": 4000, "model.channels": 128, "model.num_blocks": 3, "model.attention_resolutions": [16, 8],
    "model.blocks.num_heads": 4, "model.blocks.scale_shift": True, "model.blocks.resize": "strided_symmetric",
    "model.sinusoids.time_scale": 0.25,
}  # fmt: skip
IDDPM_CIFAR10 = IDDPM | {
    "trainer.max_steps": 500_000, "model.blocks.dropout": 0.3, "model.channel_multipliers": [1, 2, 2, 2],
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": DDPM | {
        "data.batch_size": 128, "optimizer.lr": 2e-4, "trainer.max_steps": 800_000, "data.horizontal_flip": True,
        "model.blocks.dropout": 0.1, "model.channel_multipliers": [1, 2, 2, 2],
        "variance._target_": "diffusion_lab.process.FixedLarge",
    },
    "ddpm_celebahq256": DDPM_256 | {"trainer.max_steps": 500_000, "data.horizontal_flip": True},
    "ddpm_lsun_bedroom": DDPM_256 | {"trainer.max_steps": 2_400_000, "data.horizontal_flip": False},
    "iddpm_cifar10": IDDPM_CIFAR10 | {"objective.bound_weight": 0.001},
    "iddpm_cifar10_vlb": IDDPM_CIFAR10 | {"times._target_": "diffusion_lab.process.LossSecondMoment"},
    "iddpm_imagenet64": IDDPM | {
        "trainer.max_steps": 1_500_000, "model.blocks.dropout": 0.0, "model.channel_multipliers": [1, 2, 3, 4],
    },
    "adm_imagenet64": ADM | {
        "data.batch_size": 2048, "optimizer.lr": 3e-4, "trainer.max_steps": 540_000, "model.blocks.dropout": 0.1,
        "model.channels": 192, "model.num_blocks": 3, "model.blocks.head_channels": 64,
        "process.schedule._target_": "diffusion_lab.process.CosineSchedule",
    },
    "adm_imagenet128": ADM | {
        "data.batch_size": 256, "optimizer.lr": 1e-4, "trainer.max_steps": 4_360_000, "model.blocks.dropout": 0.0,
        "model.channels": 256, "model.num_blocks": 2, "model.blocks.num_heads": 4,
        "process.schedule._target_": "diffusion_lab.process.LinearSchedule",
    },
    "adm_imagenet256": ADM | {
        "data.batch_size": 256, "optimizer.lr": 1e-4, "trainer.max_steps": 1_980_000, "model.blocks.dropout": 0.0,
        "model.channels": 256, "model.num_blocks": 2, "model.blocks.head_channels": 64,
        "process.schedule._target_": "diffusion_lab.process.LinearSchedule",
    },
    "adm_g_imagenet256": ADM | {"classifier_scale": 1.0, "trainer.max_steps": 1_980_000, "guidance_scale": 1.0},
    "adm_upsampler_256": ADM | {
        "data.batch_size": 256, "optimizer.lr": 1e-4, "trainer.max_steps": 500_000, "model.blocks.dropout": 0.0,
        "model.channels": 192, "model.num_blocks": 2, "model.blocks.num_heads": 4, "low_resolution.resolution": 64,
        "low_resolution.max_noise": 0.0, "process.schedule._target_": "diffusion_lab.process.LinearSchedule",
    },
    "classifier_imagenet64": ADM_CLASSIFIER | {
        "data.batch_size": 1024, "optimizer.lr": 6e-4, "optimizer.weight_decay": 0.2, "trainer.max_steps": 300_000,
        "model.num_blocks": 4, "process.schedule._target_": "diffusion_lab.process.CosineSchedule",
    },
    "classifier_imagenet128": ADM_CLASSIFIER | {
        "data.batch_size": 256, "optimizer.lr": 3e-4, "optimizer.weight_decay": 0.05, "trainer.max_steps": 300_000,
        "model.num_blocks": 2, "process.schedule._target_": "diffusion_lab.process.LinearSchedule",
    },
    "classifier_imagenet256": ADM_CLASSIFIER | {
        "data.batch_size": 256, "optimizer.lr": 3e-4, "optimizer.weight_decay": 0.05, "trainer.max_steps": 500_000,
        "model.num_blocks": 2, "process.schedule._target_": "diffusion_lab.process.LinearSchedule",
    },
    "dit_xl_2_imagenet256": {
        "data.batch_size": 256, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.0, "trainer.max_steps": 7_000_000,
        "lr_schedule.num_warmup_steps": 0, "trainer.gradient_clip_val": None, "ema.decays.main.decay": 0.9999,
        "model.patch_size": 2, "model.channels": 1152, "model.depth": 28, "model.num_heads": 16, "model.dropout": 0.0,
        "conditioning.dropout": 0.1, "guidance.num_channels": 3, "sampler.num_steps": 250, "space.scale": 0.18215,
        "data.fit": "adm", "data.horizontal_flip": True, "clipping._target_": "diffusion_lab.samplers.NoClipping",
        "process.schedule.num_timesteps": 1000, "process.schedule.beta_end": 0.02, "objective.bound_weight": 0.001,
    },
    "edm_cifar10": {
        "data.batch_size": 512, "optimizer.lr": 1e-3, "optimizer.betas": [0.9, 0.999], "optimizer.weight_decay": 0.0,
        "optimizer.eps": pytest.approx(1e-8 / (3 * 32 * 32), rel=1e-4), "trainer.max_steps": 200_000_000 // 512,
        "lr_schedule.num_warmup_steps": 10_000_000 // 512, "trainer.gradient_clip_val": None,
        "ema.decays.main.half_life_images": 500_000, "ema.decays.main.rampup_ratio": 0.05,
        "augmentation.probability": 0.12, "data.horizontal_flip": False, "model.blocks.dropout": 0.13,
        "model.channels": 128, "model.channel_multipliers": [2, 2, 2], "model.num_blocks": 4, "sampler.num_steps": 18,
        "sampler.churn.amount": 0.0, "times.mean": -1.2, "times.std": 1.2, "prediction.sigma_data": 0.5,
        "process.schedule.sigma_min": 0.002, "process.schedule.sigma_max": 80.0, "time_grid.rho": 7.0,
    },
}  # fmt: skip
"""Recipe -> settings of the paper or of its published code."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_settings_of_its_paper(name: str) -> None:
    config = composed(name)
    found = {key: OmegaConf.select(config, key, throw_on_missing=True) for key in PUBLISHED[name]}
    plain = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in found.items()
    }
    assert plain == PUBLISHED[name]


def test_every_recipe_of_a_paper_is_compared_with_its_paper() -> None:
    assert set(PAPERS) - set(PUBLISHED) == {"adm_ablation"}  # whose settings are those that the sweeps vary


@pytest.mark.parametrize("name", [name for name in PAPERS if re.match(r"(adm_(im|g|up)|dit)", name)])
def test_a_class_conditional_recipe_evaluates_random_classes_as_its_paper_does(name: str) -> None:
    command = re.search(r"src/evaluate\.py .*?split_size=5000", head(name), re.DOTALL)
    assert command is not None
    assert "label=random" in command[0]


def small_overrides(name: str, folder: Path) -> list[str]:
    kind = composed(name).model._target_.rpartition(".")[2]
    overrides = [*SMALL[kind], "data.batch_size=1"]
    if name in WIDER:
        overrides.append(f"model.channels={WIDER[name]}")
    if kind == "DiT":
        overrides.append(f"space.autoencoder.pretrained_model_name_or_path={folder}")
    return overrides


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_matches_the_signatures_and_builds_its_complete_network(name: str) -> None:
    config = composed(name)
    nodes = {**config, "trainer": without_acceleration(config.trainer)}
    assert list(argument_problems(nodes, "")) == []
    with torch.device("meta"):
        network = instantiate_node(config.model, "model")
    assert (sum(parameter.numel() for parameter in network.parameters()) > 30e6) == (name in PAPERS)


@pytest.mark.parametrize("name", with_representatives({name: name for name in PAPERS}, ONE_OF_EACH_KIND))
def test_a_published_recipe_trains_a_step_when_it_is_small(name: str, autoencoder: Path) -> None:
    config = composed(name, *small_overrides(name, autoencoder))
    torch.manual_seed(0)
    network = instantiate_node(config.model, "model")
    module = build_module(config, network)
    datamodule = instantiate_node(config.data.datamodule, "data")
    shape = (config.data.batch_size, config.data.channels, config.data.resolution, config.data.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    label = torch.arange(len(pixels)) % config.data.num_classes
    optimizer = module.optimizer(module.network)
    batch = ImageBatch(pixels, label, Draws(0, 0, range(len(pixels)), len(pixels)))
    loss = module.training_step(datamodule.on_after_batch_transfer(batch, 0), 0)
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite())
    without_gradient = [name for name, parameter in module.network.named_parameters() if parameter.grad is None]
    assert without_gradient == []
