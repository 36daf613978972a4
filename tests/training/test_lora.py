"""Adapters: which weights they train, what they compute, their files, and runs that resume to the bit.

The tests that add adapters are `full`, because peft takes seconds to import.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.checkpoint_files import DamagedCheckpointError
from diffusion_lab.networks import Condition, DiT, HalfUNet, Network, PixelTransformer
from diffusion_lab.training import DiffusionModule
from diffusion_lab.training.lora import DOWN, FOLDER, KEY, UP, LoRA, has_adapters, merged, merged_checkpoint
from support.networks import small_unet
from support.small_runs import fit, small_module, weights

ADAPTERS = LoRA(2, alpha=3, also_train=("conv_in.*",))

NETWORKS: dict[str, Callable[[], Network]] = {
    "unet": small_unet,
    "dit": lambda: DiT(1, 1, resolution=8, channels=16, depth=1, num_heads=2),
    "pixel_transformer": lambda: PixelTransformer(1, 1, resolution=8, channels=16, depth=1, num_heads=2),
}


def random_network(name: str) -> Network:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def with_random_adapters(network: nn.Module, adapters: LoRA) -> nn.Module:
    adapters.inject(network)
    for name, parameter in network.named_parameters():
        if name.endswith(UP):
            nn.init.normal_(parameter, std=0.2)
    return network


def output(network: nn.Module) -> Tensor:
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: Tensor = network(x_t, torch.tensor([3.0, 11.0]), Condition())
    return result


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_compute_the_output_of_the_adapters(name: str) -> None:
    network = random_network(name)
    before = output(network)
    adapters = LoRA(3, alpha=6.0)
    adapters.inject(network)
    torch.testing.assert_close(output(network), before, rtol=1e-5, atol=1e-5)  # B is 0 at first
    with_adapters = output(with_random_adapters(random_network(name), adapters))
    assert (with_adapters - before).abs().max() > 0.1 * before.std()
    plain = random_network(name)
    injected = with_random_adapters(random_network(name), adapters)
    plain.load_state_dict(merged(injected.state_dict(), adapters.scale))
    torch.testing.assert_close(output(plain), output(injected), rtol=1e-4, atol=1e-4 * float(before.std()))


@pytest.mark.full
def test_queries_keys_values_and_all_linear_layers_have_adapters_by_default() -> None:
    network = small_unet()
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    LoRA(2).inject(network)
    adapted = {name.removesuffix(DOWN) for name, _ in network.named_parameters() if name.endswith(DOWN)}
    assert {*linear, "middle.1.qkv", "middle.1.out", "down.2.0.skip"} <= adapted
    assert "conv_in" not in adapted
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(adapted)

    network = small_unet()
    LoRA(2, layers=("*.qkv", "conv_in")).inject(network)
    adapted = {name.removesuffix(DOWN) for name, _ in network.named_parameters() if name.endswith(DOWN)}
    assert adapted == {n for n, _ in small_unet().named_modules() if n.endswith(".qkv")} | {"conv_in"}


@pytest.mark.full
def test_an_adapter_of_a_3_x_3_convolution_is_merged() -> None:
    network: Any = with_random_adapters(small_unet(), LoRA(2, layers=("conv_in",)))
    x = torch.randn(2, 1, 8, 8)
    plain = nn.Conv2d(1, 8, 3, padding=1)
    state = merged(network.state_dict(), 1.0)
    plain.load_state_dict({"weight": state["conv_in.weight"], "bias": state["conv_in.bias"]})
    torch.testing.assert_close(plain(x), network.get_submodule("conv_in")(x))


def adapted_module() -> DiffusionModule:
    network = random_network("unet")
    ADAPTERS.inject(network)
    module = small_module(network=network)
    module.adapters = ADAPTERS
    return module


@pytest.mark.full
def test_a_resumed_run_with_adapters_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    uninterrupted, first, resumed = (adapted_module() for _ in range(3))
    start = {name: tensor.clone() for name, tensor in uninterrupted.network.named_parameters()}
    fit(uninterrupted, 4)
    fit(first, 2, callbacks=[SaveLast(str(tmp_path), every_n_steps=2)])
    fit(resumed, 4, ckpt_path=tmp_path / "last.ckpt", callbacks=[SaveLast(str(tmp_path), every_n_steps=4)])
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))
    assert torch.equal(weights(resumed.ema.network), weights(uninterrupted.ema.network))
    for name, parameter in uninterrupted.network.named_parameters():
        is_trained = name.endswith((DOWN, UP)) or name.startswith("conv_in.")
        assert torch.equal(parameter, start[name]) != is_trained, name

    plain = small_module(network=small_unet())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content[KEY] == 1.5
    loaded = DiffusionModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=plain.network, process=plain.process, ema=plain.ema.decays["main"]
    )
    assert not has_adapters(loaded.network)
    torch.testing.assert_close(output(loaded.ema.network), output(uninterrupted.ema.network), rtol=1e-4, atol=1e-5)
    _require_peft_loads(tmp_path / FOLDER, loaded.ema.network)


def _require_peft_loads(folder: Path, expected: Any) -> None:
    """Assert that peft adds the saved adapters to the weights from which the run started."""
    from peft import PeftModel

    network: Any = random_network("unet")
    network.conv_in.load_state_dict(expected.conv_in.state_dict())  # `also_train`: not part of the adapters
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40_000
    adapted = PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora.rank must be a whole number of at least 1, or null, got 0\."):
        LoRA(0)
    with pytest.raises(ValueError, match=r"lora.alpha must be above 0, or null, got -1\."):
        LoRA(2, alpha=-1)


@pytest.mark.full
def test_patterns_without_a_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`lora.layers` must match names such as .*, got \*.attention, which matches"):
        LoRA(2, layers=("*.attention",)).inject(small_unet())
    with pytest.raises(ValueError, match=r"`lora.also_train` must match names such as .*, got label\*, which matches"):
        LoRA(2, also_train=("label*",)).inject(small_unet())


@pytest.mark.full
def test_a_rank_above_that_of_all_weights_and_a_selection_without_layers_are_refused() -> None:
    network = nn.Sequential(nn.Linear(6, 40), nn.Conv2d(12, 9, 1))
    with pytest.raises(ValueError, match=r"lora.rank must be at most 9, the largest rank of a weight .*, got 10\."):
        LoRA(10).inject(network)
    for adapters in (LoRA(2, layers=()), LoRA(2, also_train=("*",))):
        with pytest.raises(ValueError, match=r"lora\.layers must match layers that lora.also_train does not, got none"):
            adapters.inject(network)
    assert not has_adapters(network)
    LoRA(9).inject(network)
    assert has_adapters(network)


@pytest.mark.full
def test_a_classifier_is_adapted() -> None:
    network = HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=(8,))
    LoRA(2, layers=("pool.*",)).inject(network)
    assert has_adapters(network)
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 3)


@pytest.mark.parametrize("damage", ["scale", "shape", "missing", "expanded"])
def test_damaged_adapters_are_refused(damage: str) -> None:
    state = {"conv_in.base_layer.weight": torch.zeros(8, 1, 3, 3), "conv_in.base_layer.bias": torch.zeros(8)}
    state |= {f"conv_in{DOWN}": torch.ones(2, 1, 3, 3), f"conv_in{UP}": torch.ones(8, 2, 1, 1)}
    assert merged(state, 3.0)["conv_in.weight"].unique().tolist() == [6.0]
    content: dict[str, Any] = {"state_dict": state, KEY: 1.0}
    if damage == "scale":
        content[KEY] = float("inf")
    elif damage == "missing":
        del content["state_dict"][f"conv_in{UP}"]
    else:
        shape = (3, 2, 1, 1) if damage == "shape" else (8, 2, 1, 1)
        content["state_dict"][f"conv_in{UP}"] = torch.zeros(1, 1, 1, 1).expand(shape)
    with pytest.raises(DamagedCheckpointError, match=r"last.ckpt is damaged: "):
        merged_checkpoint(content, "last.ckpt")
