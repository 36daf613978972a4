"""Our networks beside those of the library diffusers, an independent implementation."""

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import nn

from diffusion_lab.networks import Blocks, Condition, FromDiffusers, Labels, Sinusoids, UNet
from diffusion_lab.paths import CONF
from support.diffusers_weights import as_diffusers


@pytest.fixture
def hydra_here() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def filled(network: UNet) -> UNet:
    """With weights that are 0 nowhere, so that nothing hides behind an untrained layer."""
    torch.manual_seed(0)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            size = 1.0 if isinstance(module, nn.Embedding) else parameter[0].numel() ** -0.5
            one = 1.0 if isinstance(module, nn.GroupNorm) and name == "weight" else 0.0
            nn.init.normal_(parameter, mean=one, std=0.2 if isinstance(module, nn.GroupNorm) else size)
    return network.eval().requires_grad_(False)


@pytest.mark.usefixtures("hydra_here")
@pytest.mark.parametrize("conditioning", [pytest.param("none", marks=pytest.mark.full), "label"])
def test_unet_cifar10_answers_as_the_network_of_diffusers_with_the_same_weights(conditioning: str) -> None:
    chosen = ["data=cifar10", f"conditioning={conditioning}", "run_folder=somewhere"]
    ours, theirs = (
        instantiate(compose("train", overrides=[*chosen, f"model={model}"]).model, _convert_="all").eval()
        for model in ("unet_cifar10", "diffusers_unet")
    )
    assert isinstance(theirs, FromDiffusers)
    assert (theirs.in_channels, theirs.out_channels, theirs.resolution) == (3, 3, 32)
    theirs.network.load_state_dict(as_diffusers(filled(ours)))
    x_t, time = torch.randn(2, 3, 32, 32), torch.tensor([7.0, 903.0])
    condition = Condition(torch.tensor([3, 10]) if conditioning == "label" else None)
    with torch.no_grad():
        answer, expected = ours(x_t, time, condition), theirs(x_t, time, condition)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


def test_the_options_of_adm_answer_as_the_network_of_diffusers_with_the_same_weights() -> None:
    ours = UNet(
        3, 6, resolution=16, channels=16, channel_multipliers=(1, 2, 2), attention_resolutions=(16, 8, 4),
        blocks=Blocks(num_groups=4, scale_shift=True, resize="residual", head_channels=8), labels=Labels(5),
        sinusoids=Sinusoids("adm"),
    )  # fmt: skip
    theirs = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(16, 32, 32), layers_per_block=2,
        down_block_types=3 * ("AttnDownBlock2D",),
        up_block_types=3 * ("AttnUpBlock2D",),
        attention_head_dim=8, norm_num_groups=4, attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet", num_class_embeds=5,
    ).eval()  # fmt: skip
    theirs.load_state_dict(as_diffusers(filled(ours)))
    x_t, time, label = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([4, 0, 2])
    with torch.no_grad():
        expected = theirs(x_t, time, class_labels=label).sample
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours(x_t, time, Condition(label)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "settings"), [("ddpm", (False, 1)), ("adm", (True, 0))])
def test_sinusoids_are_those_of_diffusers_for_all_thousand_steps(kind: Any, settings: tuple[bool, int]) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    expected = get_timestep_embedding(torch.arange(1000), 128, *settings)
    torch.testing.assert_close(Sinusoids(kind)(torch.arange(1000), 128), expected, rtol=0, atol=2e-4)


def dit(**settings: Any) -> FromDiffusers:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    return FromDiffusers(network, **settings)


def test_other_networks_of_diffusers_are_called_in_the_same_way() -> None:
    network = dit(labels=Labels(5)).eval()
    assert (network.in_channels, network.out_channels, network.resolution) == (4, 8, 8)
    x_t, time, label = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 5.0, 9.0]), torch.tensor([0, 4, 2])
    expected = network.network(x_t, timestep=time, class_labels=label).sample
    torch.testing.assert_close(network(x_t, time, Condition(label)), expected)


def test_labels_for_a_network_that_takes_none_are_refused() -> None:
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
    )  # fmt: skip
    assert FromDiffusers(network)(torch.randn(2, 1, 8, 8), torch.zeros(2), Condition()).shape == (2, 1, 8, 8)
    autoencoder = nn.Linear(1, 1)
    autoencoder.config = type("Config", (), {"sample_size": 8, "in_channels": 1, "out_channels": 1})  # type: ignore
    with pytest.raises(
        ValueError,
        match=r"`labels` must be None .conditioning=none. for Linear, which takes no class labels, got Labels",
    ):
        FromDiffusers(autoencoder, labels=Labels(3))


def test_a_network_without_a_square_side_is_refused() -> None:
    network = diffusers.UNet2DModel(
        sample_size=(8, 16), block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"network.sample_size must be one number \(the resolution of square images\), got .*8, 16"
    ):
        FromDiffusers(network)


def test_a_side_that_cannot_be_halved_so_often_is_refused() -> None:
    network = diffusers.UNet2DModel(
        sample_size=30, block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=3 * ("DownBlock2D",), up_block_types=3 * ("UpBlock2D",),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"network.sample_size must be divisible by 4 .* got 30; try sample_size=32"):
        FromDiffusers(network)
