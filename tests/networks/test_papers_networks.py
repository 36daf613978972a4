"""Settings in which the networks of the papers' code differ from those of earlier versions."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Tensor, nn

from diffusion_lab.networks import Blocks, Condition, HalfUNet, Labels, Sinusoids, UNet
from diffusion_lab.networks.embeddings import TimeEmbedding
from diffusion_lab.paths import CONF

SMALL: dict[str, Any] = {
    "resolution": 8, "channels": 8, "channel_multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,),
}  # fmt: skip


def unet(labels: Labels | None = None, *, add_label: bool = False, **blocks: Any) -> UNet:
    settings = {"labels": labels, "sinusoids": Sinusoids(add_label=add_label)}
    return UNet(1, 1, blocks=Blocks(num_groups=4, **blocks), **SMALL | settings)


def half_unet(**blocks: Any) -> HalfUNet:
    return HalfUNet(1, 3, blocks=Blocks(num_groups=4, **blocks), **SMALL)


def norms(network: nn.Module) -> list[nn.GroupNorm]:
    return [module for module in network.modules() if isinstance(module, nn.GroupNorm)]


@pytest.mark.parametrize("build", [unet, half_unet])
def test_the_epsilon_of_ddpm_changes_every_group_normalization_by_1_0436_at_a_variance_of_1e_4(build: Any) -> None:
    ddpm, adm = norms(build(norm_eps=1e-6)), norms(build())
    assert len(ddpm) == len(adm) > 5
    for small, large in zip(ddpm, adm, strict=True):
        x = torch.tensor([0.01, -0.01]).repeat(small.num_channels, 8).view(1, -1, 4, 4)  # variance 1e-4 in each group
        ratio = small(x) / large(x)
        assert math.sqrt((1e-4 + 1e-5) / (1e-4 + 1e-6)) == pytest.approx(1.0436, abs=5e-5)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1.0436), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("choice", "epsilon", "initialization"),
    [
        *((name, 1e-6, "ddpm") for name in ("unet_cifar10", "unet_256")),
        ("unet_ddpmpp", 1e-6, "ddpmpp"),
        *((name, 1e-5, "torch") for name in ("unet_adm_64", "unet_iddpm_cifar10", "unet_quick", "half_unet_64")),
    ],
)
def test_each_published_network_has_the_epsilon_and_the_initialization_of_its_authors_code(
    choice: str, epsilon: float, initialization: str
) -> None:
    network = built(f"model={choice}", command="train_classifier" if choice.startswith("half") else "train")
    assert {norm.eps for norm in norms(network)} == {epsilon}
    assert network.conventions.get("norm_eps", 1e-5) == epsilon
    assert network.blocks.initialization == initialization


def test_the_network_of_diffusers_has_the_epsilon_of_ddpm_and_reports_it() -> None:
    network = built("model=diffusers_unet")
    assert {norm.eps for norm in norms(network)} == {1e-6}
    assert network.conventions == {"norm_eps": 1e-6}
    assert built("model=diffusers_unet", "model.network.norm_eps=1e-5").conventions == {}


def test_an_epsilon_that_is_not_above_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm_eps must be above 0, got 0\.0"):
        Blocks(norm_eps=0.0)


@pytest.mark.parametrize(("initialization", "of_attention"), [("ddpm", 1.0), ("ddpmpp", 0.1)])
def test_initial_weights_have_the_variances_of_the_papers_code(initialization: Any, of_attention: float) -> None:
    torch.manual_seed(0)
    blocks = Blocks(num_groups=4, resize="projected", initialization=initialization)
    settings = SMALL | {"channels": 32, "sinusoids": Sinusoids(add_label=True), "labels": Labels(32)}
    network = UNet(16, 16, blocks=blocks, num_augmentation_channels=32, **settings)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert len(layers) > 30
    for name, layer in layers.items():
        weight = layer.weight.detach()
        num_outputs, fan_in, area = len(weight), weight[0].numel(), weight[0, 0].numel()
        variance = 2 / (fan_in + num_outputs * area)  # variance scaling of mode fan_avg and scale 1
        variance *= 1e-10 if name.endswith(("conv_out", ".out")) else 1
        if name.endswith("qkv"):
            variance = of_attention / fan_in
        assert float(weight.std()) == pytest.approx(variance**0.5, rel=0.08), name
        assert float(weight.abs().max()) <= (3 * variance) ** 0.5 * 1.001, name  # uniform
        assert layer.bias is None or not layer.bias.any(), name


def test_the_initial_weights_of_adm_are_those_of_pytorch_and_0() -> None:
    torch.manual_seed(0)
    assert Blocks().initialization == "torch"
    network = unet()
    assert not network.get_parameter("conv_out.weight").any()
    assert float(network.conv_in.weight.detach().std()) == pytest.approx((3 * 9) ** -0.5, rel=0.15)
    with pytest.raises(ValueError, match="initialization must be torch, ddpm or ddpmpp, got xavier"):
        Blocks(initialization="xavier")  # type: ignore[arg-type]


def filled(embed: TimeEmbedding) -> TimeEmbedding:
    for parameter in embed.parameters():
        nn.init.normal_(parameter, std=0.5)
    return embed


def edm_mapping(embed: TimeEmbedding, time: Tensor, class_labels: Tensor) -> Tensor:
    """The mapping of DDPM++ in the code of Karras et al. (2022), without its last SiLU, which our blocks apply.

    class_labels: one-hot vectors, or zeros for dropped labels.
    """
    frequencies = 10_000 ** -(torch.arange(8.0) / 7)
    angle = time[:, None] * frequencies
    embedding = torch.cat([angle.sin(), angle.cos()], dim=1)
    embedding = embedding + (class_labels * math.sqrt(5)) @ embed.label.weight.mT + embed.label.bias
    first, _, second = embed.layers
    return F.silu(embedding @ first.weight.mT + first.bias) @ second.weight.mT + second.bias  # type: ignore


def test_an_added_label_is_that_of_ddpmpp_and_a_dropped_label_is_the_zero_vector_and_the_bias() -> None:
    torch.manual_seed(0)
    embed = filled(TimeEmbedding(16, 12, sinusoids=Sinusoids(add_label=True), labels=Labels(5, 0.1)))
    time, label = torch.tensor([0.0, 3.0, 0.7]), torch.tensor([4, 5, 0])  # 5 is the null label
    class_labels = torch.tensor([[0.0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    torch.testing.assert_close(embed(time, Condition(label)), edm_mapping(embed, time, class_labels))


def test_the_label_layer_starts_with_xavier_weights_and_without_bias() -> None:
    layer = TimeEmbedding(128, 512, sinusoids=Sinusoids(add_label=True), labels=Labels(10)).label
    bound = math.sqrt(6 / (10 + 128))  # Karras et al. (2022), code: init_mode xavier_uniform
    weight = layer.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(bound, rel=0.02)
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not layer.bias.any()


@pytest.mark.parametrize(("labels", "wrong"), [(Labels(5), 5), (Labels(5, 0.1), 6)])
def test_a_label_beyond_the_classes_is_refused_and_not_taken_for_a_dropped_one(labels: Labels, wrong: int) -> None:
    network = unet(labels, add_label=True)
    network(torch.randn(1, 1, 8, 8), torch.zeros(1), Condition(torch.tensor([wrong - 1])))
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        network(torch.randn(1, 1, 8, 8), torch.zeros(1), Condition(torch.tensor([wrong])))


def test_a_network_has_one_label_layer_and_no_layer_without_classes() -> None:
    table, added, neither = unet(Labels(5, 0.1)), unet(Labels(5, 0.1), add_label=True), unet(add_label=True)
    own = [
        {name for name in network.state_dict() if "label" in name} for network in (table, added, neither)
    ]  # fmt: skip
    assert own == [{"label_embedding.weight"}, {"time_embedding.label.weight", "time_embedding.label.bias"}, set()]
    assert table.label_embedding is not None
    assert table.label_embedding.weight.shape == (6, 32)
    assert added.time_embedding.label.weight.shape == (8, 5)  # no row for the null label


def test_networks_report_the_settings_that_differ_from_those_of_earlier_versions() -> None:
    assert unet(Labels(5)).conventions == half_unet().conventions == {}
    assert unet(norm_eps=1e-6).conventions == half_unet(norm_eps=1e-6).conventions == {"norm_eps": 1e-6}
    assert unet(add_label=True).conventions == {}  # has no effect without classes
    assert unet(Labels(5), add_label=True, norm_eps=1e-6).conventions == {"norm_eps": 1e-6, "add_label": True}


def built(*overrides: str, command: str = "train") -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = compose(command, overrides=["run_folder=somewhere", "data=cifar10", *overrides]).model
        with torch.device("meta"):
            return instantiate(model, _convert_="all")
