"""The printed line about the cost of a run, and the settings that it names for a shorter run on a CPU."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.networks import Condition, HalfUNet, Labels, UNet
from diffusion_lab.paths import CONF
from diffusion_lab.process import Uniform
from diffusion_lab.runs.cost.training import Cost
from diffusion_lab.runs.cost.training_line import QUICK_PARAMETERS, describe, print_cost, steps_in_an_hour
from diffusion_lab.runs.resume import StartingPoint
from diffusion_lab.runs.setup.training import Run
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.classifier_module import ClassifierModule
from diffusion_lab.training.optimizers import OptimizerFactory
from support.small_runs import FewImages, fit, small_module

NEW = StartingPoint(OmegaConf.create())
STEPS = r"trainer\.max_steps=\d+ \(about an hour without sample images and metrics\)"


def unet(channels: int = 96, resolution: int = 8) -> UNet:
    """Return a U-Net, which has 2.0 million parameters by default."""
    return UNet(1, 1, resolution=resolution, channels=channels, channel_multipliers=(1,), attention_resolutions=())


def run_of(module: TrainedModule, folder: Path, max_steps: int = 10**8) -> Run:
    """Return a run that takes days even without its network, because of its number of steps."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=max_steps
    )
    data = ImageDataModule(FewImages(), batch_size=12, seed=3)
    return Run(module, data, trainer, folder)


def printed(
    module: TrainedModule, capsys: pytest.CaptureFixture[str], overrides: Sequence[str] = (),
    start: StartingPoint = NEW, max_steps: int = 10**8,
) -> str:  # fmt: skip
    print_cost(run_of(module, Path("run"), max_steps), start, overrides)
    return capsys.readouterr().out


class ReadsValues(nn.Module):
    """A network whose control flow depends on values, so that its operations cannot be counted."""

    in_channels = out_channels = 1
    resolution, labels, num_augmentation_channels, condition_channels = 8, Labels(), 0, 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.layer(x_t if float(x_t.mean()) > 0 else -x_t)
        return output


def test_a_run_of_hours_on_a_cpu_names_the_recipe_of_the_quick_start_and_fewer_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = printed(small_module(network=unet()), capsys, ["data=fashion_mini", "model=unet_small", "seed=3"])
    recipe = "the recipe of the quick start, experiment=quickstart without model=unet_small"
    assert re.search(f"; shorter on a CPU: {recipe}, or {STEPS}\n$", line), line
    assert "cost: 2.0 million parameters" in line


def test_a_run_of_minutes_names_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"per step\)\n$", printed(small_module(), capsys, max_steps=21))
    assert printed(small_module(), capsys, max_steps=20) == ""  # a trial


@pytest.mark.parametrize(
    ("network", "overrides", "start"),
    [
        (unet(resolution=10), [], NEW),  # unet_quick halves the image twice
        (unet(), ["model=unet_small", "model.channels=96"], NEW),
        (unet(), ["+experiment=ddpm_cifar10"], NEW),
        (unet(), [], replace(NEW, checkpoint=Path("last.ckpt"), step=7)),  # a fork
        (unet(), [], replace(NEW, continues=True)),
    ],
)
def test_no_network_is_named_that_may_not_fit_the_run(
    network: UNet, overrides: list[str], start: StartingPoint, capsys: pytest.CaptureFixture[str]
) -> None:
    line = printed(small_module(network=network), capsys, overrides, start)
    assert re.search(f"; shorter on a CPU: {STEPS}\n$", line), line


def test_the_steps_of_an_hour_are_added_to_those_of_a_resumed_run(capsys: pytest.CaptureFixture[str]) -> None:
    start = replace(NEW, checkpoint=Path("last.ckpt"), step=10**7 + 7, continues=True)
    steps = re.search(r"max_steps=(\d+)", printed(small_module(), capsys, start=start))
    assert steps is not None
    assert 10**7 + 7 < int(steps[1]) < 10**7 + 3600 / 0.003


def test_a_classifier_names_the_small_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    network, process = HalfUNet(1, 3, resolution=8, channels=128, channel_multipliers=(1,)), small_module().process
    module = ClassifierModule(
        network, process, times=Uniform(process.schedule), optimizer=OptimizerFactory(torch.optim.AdamW, lr=1e-3)
    )
    assert printed(module, capsys).endswith(", or a smaller network, model=half_unet_quick\n")


@pytest.mark.parametrize("resolution", [12, 28, 32, 64, 128, 256])
def test_the_named_networks_fit_each_resolution_and_are_smaller(resolution: int) -> None:
    GlobalHydra.instance().clear()
    sizes = ["data=imagenet64", f"data.resolution={resolution}", "run_folder=somewhere"]
    conditions = ["conditioning=label", "objective=hybrid", "augmentation=edm", "low_resolution=noised"]
    with initialize_config_dir(str(CONF), version_base="1.3"), torch.device("meta"):
        for command, name, overrides in (
            ("train", "unet_quick", [*conditions, "low_resolution.resolution=4"]),
            ("train_classifier", "half_unet_quick", []),
        ):
            config = compose(command, overrides=[*sizes, *overrides, f"model={name}"])
            network = instantiate(config.model, _convert_="all")
            assert sum(parameter.numel() for parameter in network.parameters()) < QUICK_PARAMETERS


def test_a_run_whose_operations_cannot_be_counted_prints_no_cost_and_trains(capsys: pytest.CaptureFixture[str]) -> None:
    network: Any = ReadsValues()
    module = small_module(network=network)
    assert printed(module, capsys) == ""
    assert fit(module, 1).global_step == 1


def test_the_cost_is_described_in_parameters_memory_and_time() -> None:
    cost = Cost(35_746_307, memory=4.14e9, seconds_per_step=0.95, seconds_per_image=0.01)
    assert describe(cost, 20_000, measuring=1800) == (
        "35.7 million parameters, about 4.1 GB of memory, about 5.8 hours (0.95 s per step; 30 minutes for sample "
        "images and metrics)"
    )
    assert describe(cost, 100, measuring=0.0).endswith("about 2 minutes (0.95 s per step)")
    assert describe(cost, -1, measuring=0.0).endswith("of memory, about 0.95 s per step")
    assert steps_in_an_hour(cost) == 3000
    assert 0.95 * 3000 <= 3600 < 0.95 * 4000
