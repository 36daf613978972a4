"""Checkpoints of improved-diffusion and guided-diffusion, random and of published sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop import openai_classifier, openai_unet
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Imported, Options, build_network, network_on_meta
from diffusion_lab.interop.tensors import ForeignTensors
from diffusion_lab.networks import Condition
from support.foreign_openai import (
    CLASSIFIERS,
    PUBLISHED,
    OpenAI,
    classifier,
    meta_tensors,
    random_tensors,
    small_unets,
    unet,
)
from support.representatives import with_representatives

SMALL = dict(small_unets())


def typed(flags: OpenAI, **others: Any) -> Options:
    """The settings of a file with an unknown name."""
    heads: Any = {"head_channels": flags.head_channels} if flags.head_channels else {"num_heads": flags.heads}
    order: Any = "new" if flags.new_order else None
    steps = round(1000 / flags.time_scale)
    given = frozenset({"schedule", "schedule.num_timesteps"})
    return Options(
        resolution=flags.resolution, **heads, attention_order=order, num_timesteps=steps, given=given, **others
    )


def saved(folder: Path, tensors: Any, name: str = "model.pt") -> Path:
    torch.save(tensors, folder / name)
    return folder / name


def loaded(imported: Imported, dtype: torch.dtype = torch.float64) -> Any:
    network = build_network(imported.network)
    network.load_state_dict(imported.weights)
    return network.to(dtype).eval()


def inputs(flags: OpenAI) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shape = (3, flags.taken, flags.resolution, flags.resolution)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.0, 250.0, 999.0]), torch.tensor([0, 4, 2]) if flags.classes else None


@pytest.mark.parametrize("name", SMALL)
def test_an_imported_unet_has_the_outputs_of_the_original(name: str, tmp_path: Path) -> None:
    flags = SMALL[name]
    tensors = random_tensors(flags.shapes())
    form, imported = read_foreign(saved(tmp_path, tensors), "auto", typed(flags))
    assert form == ("adm" if flags.updown else "improved_ddpm")
    x, time, label = inputs(flags)
    expected = unet(flags, {k: v.double() for k, v in tensors.items()}, x, time, label)
    output = loaded(imported)(x, time, Condition(label))
    assert (output - expected).abs().max() < 1e-12 * expected.abs().max()
    single = loaded(imported, torch.float32)(x.float(), time, Condition(label))
    assert (single - expected).abs().max() < 2e-5 * expected.abs().max()


def test_an_imported_upsampler_takes_the_low_resolution_image_after_the_noisy_image(tmp_path: Path) -> None:
    flags = OpenAI(16, 32, (1, 2), 1, (8,), heads=4, classes=5, taken=6)
    tensors = random_tensors(flags.shapes())
    options = typed(flags)
    options = Options(**{**vars(options), "given": options.given | {"low_resolution.resolution"}})
    _, imported = read_foreign(saved(tmp_path, tensors), "adm", options)
    x, time, label = inputs(flags)
    noisy, low = x[:, :3], x[:, 3:, :8, :8]
    upsampled = torch.nn.functional.interpolate(low, (16, 16), mode="bilinear")
    weights = {k: v.double() for k, v in tensors.items()}
    expected = unet(flags, weights, torch.cat([noisy, upsampled], dim=1), time, label)
    output = loaded(imported)(noisy, time, Condition(label, image=low))
    assert (output - expected).abs().max() < 1e-12 * expected.abs().max()
    with pytest.raises(UserError, match="low_resolution must be given"):
        read_foreign(saved(tmp_path, tensors), "adm", typed(flags))


@pytest.mark.parametrize("depth", [1, 2])
def test_an_imported_classifier_has_the_logits_of_the_original(depth: int, tmp_path: Path) -> None:
    flags = OpenAI(16, 32, (1, 2), depth, (16, 8), head_channels=16, made=7)
    tensors = random_tensors(flags.classifier_shapes())
    options = Options(head_channels=16, given=frozenset({"schedule"}))  # the file determines the resolution
    _, imported = read_foreign(saved(tmp_path, tensors), "auto", options)
    assert imported.command == "train_classifier"
    assert imported.network["resolution"] == 16
    x, time, _ = inputs(flags)
    expected = classifier(flags, {k: v.double() for k, v in tensors.items()}, x, time)
    assert (loaded(imported)(x, time) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("heads", [1, 4])
def test_the_wrong_number_of_heads_changes_the_output(heads: int, tmp_path: Path) -> None:
    flags = SMALL["adm with the legacy order"]
    tensors = random_tensors(flags.shapes())
    x, time, label = inputs(flags)
    options = Options(**{**vars(typed(flags)), "num_heads": heads})
    imported = read_foreign(saved(tmp_path, tensors), "adm", options)[1]
    expected = unet(flags, {k: v.double() for k, v in tensors.items()}, x, time, label)
    assert (loaded(imported)(x, time, Condition(label)) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_weights_in_float16_are_read_as_float32(tmp_path: Path) -> None:
    flags = SMALL["adm with the new order"]
    tensors = random_tensors(flags.shapes(), torch.float16)
    imported = read_foreign(saved(tmp_path, tensors), "adm", typed(flags))[1]
    assert {tensor.dtype for tensor in imported.weights.values()} == {torch.float32}
    assert torch.equal(imported.weights["conv_in.weight"], tensors["input_blocks.0.0.weight"].float())


SOME_PUBLISHED = ("64x64_diffusion.pt", "512x512_diffusion.pt", "64_256_upsampler.pt", "cifar10_uncond_50M_500K.pt")


@pytest.mark.parametrize("name", with_representatives({name: name for name in PUBLISHED}, SOME_PUBLISHED))
def test_each_published_unet_needs_no_settings_and_has_the_published_number_of_parameters(name: str) -> None:
    flags, count = PUBLISHED[name]
    tensors = ForeignTensors(meta_tensors(flags.shapes()), Path(name), "adm")
    assert sum(tensor.numel() for tensor in tensors.values()) == count
    imported = openai_unet.read(tensors, Options(), rescaled=not flags.updown)
    network = network_on_meta(imported.network, Path(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert imported.network["attention_resolutions"] == list(flags.attention)
    assert imported.network["sinusoids"]["time_scale"] == flags.time_scale
    blocks = imported.network["blocks"]
    assert (blocks["head_channels"] or 64) == 64
    assert blocks["head_channels"] == flags.head_channels
    assert imported.conventions["attention_order"] == ("new" if flags.new_order else "legacy")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_published_classifier_has_the_published_number_of_parameters(name: str) -> None:
    flags, count = CLASSIFIERS[name]
    tensors = ForeignTensors(meta_tensors(flags.classifier_shapes()), Path(name), "adm")
    assert sum(tensor.numel() for tensor in tensors.values()) == count
    imported = openai_classifier.read(tensors, Options())
    network = network_on_meta(imported.network, Path(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert imported.network["resolution"] == flags.resolution


def test_the_name_of_a_published_file_gives_its_schedule_and_its_steps() -> None:
    flags, _ = PUBLISHED["cifar10_uncond_50M_500K.pt"]
    tensors = ForeignTensors(meta_tensors(flags.shapes()), Path("cifar10_uncond_50M_500K.pt"), "improved_ddpm")
    imported = openai_unet.read(tensors, Options(), rescaled=True)
    assert imported.step == 500_000
    assert {"data=cifar10", "schedule=cosine", "schedule.num_timesteps=4000", "variance=learned_range"} <= set(
        imported.overrides
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), "resolution must be given"),
        (Options(resolution=16), "schedule must be given"),
        (Options(resolution=16, given=frozenset({"schedule"})), "num_heads or head_channels must be given"),
        (Options(resolution=16, num_heads=3, given=frozenset({"schedule"})), "num_heads must divide the channels"),
        (Options(resolution=17, num_heads=2, given=frozenset({"schedule"})), "resolution must be divisible by 2"),
    ],
)
def test_a_file_with_an_unknown_name_needs_what_it_does_not_contain(
    options: Options, message: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, random_tensors(SMALL["adm with the legacy order"].shapes()))
    with pytest.raises(UserError, match=message):
        read_foreign(file, "auto", options)
