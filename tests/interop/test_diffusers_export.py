"""Export of networks to `diffusers`: which have an exact counterpart, and which setting stands in the way."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import UserError
from diffusion_lab.interop import diffusers_folder as folders
from diffusion_lab.interop.diffusers_export import TrainedNetwork, diffusers_folder
from diffusion_lab.interop.own_settings import build_on_meta
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.networks import Network
from diffusion_lab.paths import CONF
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    GaussianProcess,
    JSDSchedule,
    LearnedRange,
    LinearScaledSchedule,
    LinearSchedule,
    NoiseSchedule,
    Prediction,
    QuadraticSchedule,
    Score,
    V,
)
from diffusion_lab.samplers import (
    DDIM,
    Ancestral,
    DynamicClipping,
    KarrasTimes,
    LeadingTimes,
    NoClipping,
    Sampler,
    StaticClipping,
    TrailingTimes,
    UniformTimes,
)
from support.pipelines import as_array, drawn_by_pipeline, drawn_by_sampler, mild

PARTS = "diffusion_lab.networks."
LABELS = {"_target_": PARTS + "Labels", "num_classes": 1000, "dropout": 0.1}
UNET: dict[str, Any] = {
    "_target_": PARTS + "UNet", "in_channels": 1, "out_channels": 1, "resolution": 8, "channels": 8,
    "channel_multipliers": [1, 2], "num_blocks": 1, "attention_resolutions": [4],
    "blocks": {"_target_": PARTS + "Blocks", "num_groups": 4},
}  # fmt: skip
DIT: dict[str, Any] = {
    "_target_": PARTS + "DiT", "in_channels": 4, "out_channels": 8, "resolution": 8, "channels": 16, "depth": 2,
    "num_heads": 2, "labels": LABELS, "variant": {"_target_": PARTS + "DiTVariant", "time_kind": "ddpm"},
}  # fmt: skip


def trained(
    node: dict[str, Any],
    schedule: NoiseSchedule | None = None,
    prediction: Prediction | None = None,
    *,
    space: Any = None,
    sampler: type[Sampler] = DDIM,
    **settings: Any,
) -> tuple[TrainedNetwork, Network]:
    """A network with random weights, and itself.  settings: of the sampler."""
    network: Any = mild(instantiate(node, _convert_="all"))
    process = GaussianProcess(schedule or CosineSchedule())
    built = sampler(process, **({"num_steps": 20, "time_grid": LeadingTimes()} | settings))
    state: dict[str, Tensor] = network.state_dict()
    return TrainedNetwork(node, state, process, prediction or V(), built, space or Pixels()), network


SAMPLERS: list[dict[str, Any]] = [
    {"clipping": NoClipping(), "time_grid": LeadingTimes(offset=3)},
    {"time_grid": TrailingTimes(), "schedule": LinearSchedule(zero_terminal_snr=True)},
    {"schedule": JSDSchedule(200), "noise_after_clipping": False},
    {"schedule": LinearScaledSchedule(500), "prediction": Epsilon()},
    {"schedule": QuadraticSchedule(), "clipping": DynamicClipping(0.8), "noise_after_clipping": False},
    {"sampler": Ancestral, "time_grid": UniformTimes()},
]


@pytest.mark.parametrize("number", [0, 3, *(pytest.param(k, marks=pytest.mark.full) for k in (1, 2, 4, 5))])
def test_the_exported_pipeline_draws_the_images_of_the_sampler(number: int, tmp_path: Path) -> None:
    ours, network = trained(UNET, **SAMPLERS[number])
    folder = diffusers_folder(ours)
    folder.write(tmp_path, ours.space)
    pipeline = getattr(diffusers, folder.pipeline).from_pretrained(tmp_path)
    clips = getattr(ours.sampler, "noise_after_clipping", False)
    arguments = {"use_clipped_model_output": True} if clips else {}
    images = drawn_by_pipeline(pipeline, num_inference_steps=20, **arguments)
    expected = as_array(drawn_by_sampler(Denoiser(network, ours.process, ours.prediction), ours.sampler))
    assert expected.std() > 0.02
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"channels": 384, "depth": 12, "num_heads": 6, "resolution": 32}, marks=pytest.mark.full, id="DiT-S/2"
        ),
    ],
)
def test_dit_pipeline_draws_the_images_of_an_exported_dit_and_its_autoencoder(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    space = Latents(autoencoder, scale=0.5)
    ours, network = trained(DIT | changes, LinearSchedule(), Epsilon(), space=space, clipping=NoClipping())
    names = [f"class {number}" for number in range(1000)]
    diffusers_folder(ours, class_names=names).write(tmp_path, space)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path)
    assert pipeline.labels["class 7"] == 7
    images = drawn_by_pipeline(pipeline, class_labels=[7, 999], guidance_scale=1.0, num_inference_steps=20)
    denoiser = Denoiser(network, ours.process, ours.prediction)
    latents = drawn_by_sampler(denoiser, ours.sampler, label=torch.tensor([7, 999]))
    np.testing.assert_allclose(images, as_array(space.decode(latents)), rtol=0, atol=1e-5)
    settings, state = folders.read(tmp_path)
    kept = {name: tensor for name, tensor in ours.state.items() if not name.startswith("head.out")}
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    assert settings["model"]["out_channels"] == 4
    assert settings["space"]["scale"] == 0.5


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("unet_cifar10", []),
        ("unet_256", ["data.resolution=256"]),
        ("unet_tiny", ["conditioning=label"]),
        *(
            pytest.param(model, ["data.resolution=64", "objective=hybrid"], marks=pytest.mark.full)
            for model in ("unet_small", "unet_adm_64")
        ),
    ],
)
def test_the_networks_of_the_papers_have_a_unet2d_model_with_the_same_tensors(model: str, overrides: list[str]) -> None:
    GlobalHydra.instance().clear()
    chosen = [f"model={model}", "data=cifar10", "model.sinusoids.time_scale=1", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[*chosen, "run_folder=somewhere"])
        node: Any = OmegaConf.to_container(config.model, resolve=True)
    state = build_on_meta(node).state_dict()
    process = GaussianProcess(LinearSchedule())
    folder = diffusers_folder(TrainedNetwork(node, state, process, Epsilon(), DDIM(process), Pixels()))
    settings = {key: value for key, value in folder.network.items() if not key.startswith("_")}
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**settings).state_dict()
    assert {name: tensor.shape for name, tensor in folder.weights.items()} == {n: t.shape for n, t in theirs.items()}


def blocks(**changes: Any) -> dict[str, Any]:
    return {"blocks": UNET["blocks"] | changes}


def sinusoids(**changes: Any) -> dict[str, Any]:
    return {"sinusoids": {"_target_": PARTS + "Sinusoids", **changes}}


@pytest.mark.parametrize(
    ("node", "options", "message"),
    [
        (
            UNET | {"patch_size": 2, "attention_resolutions": [2]},
            {},
            r"model.patch_size must be 1 .*got 2; format=safet",
        ),
        (
            UNET,
            {"schedule": EDMSchedule(), "time_grid": KarrasTimes()},
            r"schedule must be .* discrete .*got EDMSchedule",
        ),
        (UNET, {"prediction": Score()}, r"prediction must be epsilon, x_0 or v .*got Score"),
        (UNET | sinusoids(time_scale=0.5), {}, r"model.sinusoids.time_scale must be 1 .*got 0.5"),
        (UNET | sinusoids(max_period=9.0), {}, r"model.sinusoids.max_period must be 10000 .*got 9.0"),
        (
            UNET | {"labels": LABELS} | sinusoids(add_label=True),
            {},
            r"add_label must be false \(or label=CLASS for the",
        ),
        (UNET | blocks(rescale=True), {}, r"model.blocks.rescale must be false .*got true"),
        (UNET | blocks(resize="projected"), {}, r"model.blocks.resize must be strided or .*got projected"),
        (UNET | blocks(middle_norm=False), {}, r"model.blocks.middle_norm must be true for blocks.scale_shift=false"),
        (UNET | blocks(num_heads=2) | {"attention_resolutions": [8, 4]}, {}, r"model.blocks.num_heads must be .*got 2"),
        (UNET | {"num_blocks": [1, 2]}, {}, r"model.num_blocks must be the same at all levels .*got \[1, 2\]"),
        (UNET | {"channel_multipliers": [2, 1]}, {}, r"first number of model.channel_multipliers must be 1 .*got 2.0"),
        (UNET | {"attend_once_on_way_up": True}, {}, r"model.attend_once_on_way_up must be false .*got true"),
        (UNET | {"condition_channels": 1}, {}, r"model.condition_channels must be 0 .*got 1 channels"),
        (UNET, {"space": "latents"}, r"space must be pixels for a U-Net .*got Latents"),
        (DIT | {"variant": None}, {}, r"model.variant.time_kind must be ddpm .*got adm"),
        (DIT | {"mlp_ratio": 2.0}, {}, r"model.mlp_ratio must be 4.0 .*got 2.0"),
        (DIT | {"labels": LABELS | {"num_classes": 10}}, {}, r"data.num_classes must be 1000 .*got 10"),
        (DIT | {"labels": LABELS | {"dropout": 0.0}}, {}, r"conditioning.dropout must be above 0 .*got 0.0"),
        (DIT, {}, r"space must be sd_latents for a DiT .*got Pixels"),
        (
            DIT | {"_target_": PARTS + "PixelTransformer"},
            {},
            r"model must be a choice of UNet or DiT .*PixelTransformer",
        ),
    ],
)
def test_a_setting_without_a_counterpart_is_refused_by_name(
    node: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    options = dict(options)
    if options.get("space"):
        options["space"] = Latents(torch.nn.Identity())
    ours, _ = trained(UNET, **options)
    changed = TrainedNetwork(node, ours.state, ours.process, ours.prediction, ours.sampler, ours.space)
    with pytest.raises(UserError, match=message):
        diffusers_folder(changed)


def test_the_scheduler_of_another_sampler_is_ddim(tmp_path: Path) -> None:
    for variance in (LearnedRange(),):
        ours, _ = trained(UNET, sampler=Ancestral, variance=variance, clipping=StaticClipping())
        folder = diffusers_folder(ours)
        assert folder.pipeline == "DDIMPipeline"
        assert folder.scheduler["timestep_spacing"] == "leading"
