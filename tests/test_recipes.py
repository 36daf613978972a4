"""Every recipe in conf/experiment states its claim and its commands, builds, and trains a step when made small."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

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
