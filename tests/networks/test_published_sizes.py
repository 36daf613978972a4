"""The networks of conf/ beside the parameter counts of their authors' code."""

from collections.abc import Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from diffusion_lab.paths import CONF


@pytest.fixture(autouse=True)
def hydra_here() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def num_parameters(config_name: str, *overrides: str) -> int:
    config = compose(config_name, overrides=["run_folder=somewhere", *overrides])
    with torch.device("meta"):  # shapes alone, at once
        network = instantiate(config.model, _convert_="all")
    return sum(parameter.numel() for parameter in network.parameters())


LEARNED = ["variance=learned_range"]
CLASSES = ["conditioning=label", "conditioning.dropout=0"]
LATENTS = ["data.channels=4", "data.resolution=32", "data.num_classes=1000", "conditioning=label", *LEARNED]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["data=cifar10", "model=unet_cifar10"], 35_746_307),
        (["data=lsun_bedroom", "model=unet_256"], 113_673_219),
        (["data=cifar10", "model=unet_iddpm_cifar10", *LEARNED], 52_546_438),
        (["data=imagenet64", "model=unet_iddpm_64", *LEARNED], 121_063_942),
        (["data=imagenet64", "model=unet_adm_64", *LEARNED, *CLASSES], 295_904_454),
        (["data=imagenet128", "model=unet_adm_128", *LEARNED, *CLASSES], 421_529_606),
        (["data=imagenet256", "model=unet_adm_256", *LEARNED, *CLASSES], 553_838_086),
        pytest.param(["data=lsun_bedroom", "model=unet_adm_256", *LEARNED], 552_814_086, marks=pytest.mark.full),
        (["data=imagenet256", "data.resolution=512", "model=unet_adm_512", *LEARNED, *CLASSES], 558_997_638),
        (["data=imagenet256", "model=unet_adm_upsampler", *LEARNED, *CLASSES], 311_795_910),
        (["data=cifar10", "model=unet_ddpmpp", "augmentation=edm"], 55_733_891),
        pytest.param(
            ["data=cifar10", "model=unet_ddpmpp", "augmentation=edm", *CLASSES], 55_735_299, marks=pytest.mark.full
        ),
        (["data=cifar10", "model=unet_ddpmpp", "augmentation=edm", "conditioning=label"], 55_735_299),
        (["model=unet_tiny"], 1_623_169),
        (["model=unet_quick", "conditioning=label"], 758_148),
    ],
    ids=lambda value: next(word for word in value if "model=" in word) if isinstance(value, list) else None,
)
def test_published_networks_have_as_many_parameters_as_their_authors_code(overrides: list[str], count: int) -> None:
    assert num_parameters("train", *overrides) == count


def test_a_saved_setting_keeps_the_embedding_table_of_earlier_versions_in_ddpmpp() -> None:
    chosen = ["data=cifar10", "model=unet_ddpmpp", "augmentation=edm", "model.sinusoids.add_label=false"]
    assert num_parameters("train", *chosen, *CLASSES) == 55_739_011
    assert num_parameters("train", *chosen, "conditioning=label") == 55_739_011 + 512  # a row for the null label


@pytest.mark.parametrize(
    ("choice", "count"),
    [("dit_s", 32_963_360), ("dit_b", 130_512_416), ("dit_l", 458_102_816), ("dit_xl", 675_129_632)],
)
def test_dit_has_as_many_parameters_as_its_authors_code(choice: str, count: int) -> None:
    config = compose("train", overrides=["run_folder=somewhere", f"model={choice}", *LATENTS])
    with torch.device("meta"):
        network = instantiate(config.model, _convert_="all")
    learned = sum(parameter.numel() for parameter in network.parameters())
    assert learned + network.positions.numel() == count  # the paper's code counts its fixed positions


@pytest.mark.parametrize(
    "choice", ["dit_s", *(pytest.param(name, marks=pytest.mark.full) for name in ("dit_b", "dit_l", "dit_xl"))]
)
def test_larger_patches_change_the_first_and_the_last_layer_alone(choice: str) -> None:
    counts = [num_parameters("train", f"model={choice}", f"model.patch_size={p}", *LATENTS) for p in (2, 4, 8)]
    width = compose("train", overrides=[f"model={choice}", "run_folder=x"]).model.channels
    # in: 4 p^2 x width; out: 8 p^2 x width and its bias
    assert [count - counts[0] for count in counts[1:]] == [(p**2 - 4) * (12 * width + 8) for p in (4, 8)]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["data=imagenet64", "model=half_unet_64"], 65_438_568),
        (["data=imagenet128", "model=half_unet"], 42_568_040),
        (["data=imagenet256", "model=half_unet"], 54_096_360),
    ],
)
def test_published_classifiers_have_as_many_parameters_as_their_authors_code(overrides: list[str], count: int) -> None:
    assert num_parameters("train_classifier", *overrides) == count
