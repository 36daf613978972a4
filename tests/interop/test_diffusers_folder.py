"""Import of folders of `diffusers`: the images of a pipeline are those of the imported network and sampler."""

import json
import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop import diffusers_folder, diffusers_unet
from diffusion_lab.interop.own_settings import build_on_meta
from diffusion_lab.networks import Condition, DiT, UNet
from support.pipelines import as_array, built, drawn_by_pipeline, drawn_by_sampler, mild, saved

CIFAR10 = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
LSUN = {
    **CIFAR10, "sample_size": 256, "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*4 * ("DownBlock2D",), "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *4 * ("UpBlock2D",)),
}  # fmt: skip
SMALL: dict[str, Any] = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


def random_unet(seed: int) -> dict[str, Any]:
    """Options of UNet2DModel chosen at random, all of which have a counterpart."""
    choose = random.Random(seed)
    num_levels = choose.choice([2, 3])
    attends = [choose.random() < 0.5 for _ in range(num_levels)]
    residual = choose.random() < 0.5
    down = ("ResnetDownsampleBlock2D" if residual else "DownBlock2D", "AttnDownBlock2D")
    up = ("ResnetUpsampleBlock2D" if residual else "UpBlock2D", "AttnUpBlock2D")
    return {
        "sample_size": 16,
        "in_channels": choose.choice([1, 3]),
        "block_out_channels": [choose.choice([12, 20, 24]) for _ in range(num_levels)],
        "down_block_types": [down[attend] for attend in attends],
        "up_block_types": [up[attend] for attend in reversed(attends)],
        "layers_per_block": choose.choice([1, 2]),
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "downsample_padding": choose.choice([0, 1]),
        "flip_sin_to_cos": choose.random() < 0.5,
        "freq_shift": choose.choice([0, 1]),
        "attention_head_dim": choose.choice([None, 2, 4]),
        "norm_num_groups": choose.choice([2, 4]),
        "norm_eps": choose.choice([1e-6, 1e-5, 1e-3]),
        "resnet_time_scale_shift": choose.choice(["default", "scale_shift"]),
    }


def unet(**options: Any) -> Any:
    options.setdefault("out_channels", options.get("in_channels", 3))
    return mild(diffusers.UNet2DModel(**options))


def difference(pipeline: Any, folder: Path, num_images: int = 2) -> float:
    """Largest difference between 20 steps of a pipeline and of its imported folder; images are in [0, 1]."""
    settings, state = diffusers_folder.read(saved(pipeline, folder))
    images = as_array(drawn_by_sampler(*built(settings, state, num_steps=20), num_images))
    expected = drawn_by_pipeline(pipeline, num_images, num_inference_steps=20)
    assert expected.std() > 0.02
    return float(np.abs(images - expected).max())


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 12))])
def test_random_options_of_unet2d_model_draw_the_images_of_their_pipeline(seed: int, tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipeline = diffusers.DDIMPipeline(unet(**random_unet(seed)), scheduler)
    assert difference(pipeline, tmp_path) < 1e-5


SCHEDULERS: list[dict[str, Any]] = [
    {"_class_name": "DDIM", "clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1},
    {"_class_name": "DDIM", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"_class_name": "DDIM", "timestep_spacing": "trailing", "prediction_type": "v_prediction",
     "rescale_betas_zero_snr": True},
    {"_class_name": "DDIM", "trained_betas": [k / 4000 for k in range(1, 101)], "num_train_timesteps": 100},
    {"_class_name": "DDIM", "thresholding": True, "prediction_type": "sample"},
    {"_class_name": "DDIM", "thresholding": True, "sample_max_value": 1e6, "dynamic_thresholding_ratio": 0.9,
     "prediction_type": "v_prediction"},
    {"_class_name": "DDPM", "variance_type": "fixed_large"},
    {"_class_name": "DDPM", "variance_type": "fixed_small_log", "beta_schedule": "sigmoid"},
    {"_class_name": "DDPM", "timestep_spacing": "linspace", "prediction_type": "sample"},
    {"_class_name": "DDPM", "timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"},
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 2, 7, *(pytest.param(k, marks=pytest.mark.full) for k in (1, 3, 4, 5, 6, 8, 9))])
def test_the_settings_of_schedulers_draw_the_images_of_their_pipeline(number: int, tmp_path: Path) -> None:
    options = dict(SCHEDULERS[number])
    name = options.pop("_class_name")
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    pipeline = getattr(diffusers, f"{name}Pipeline")(unet(**SMALL), scheduler)
    assert difference(pipeline, tmp_path) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize(("options", "num_parameters"), [(CIFAR10, 35_746_307), (LSUN, 113_673_219)])
def test_ddpm_at_its_published_sizes_draws_the_images_of_its_pipeline(
    options: dict[str, Any], num_parameters: int, tmp_path: Path
) -> None:
    network = unet(**options)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    assert difference(diffusers.DDIMPipeline(network, scheduler), tmp_path, num_images=1) < 1e-5


@pytest.mark.parametrize(("options", "num_parameters"), [(CIFAR10, 35_746_307), (LSUN, 113_673_219)])
def test_the_configs_of_ddpm_give_networks_with_the_published_numbers_of_parameters(
    options: dict[str, Any], num_parameters: int, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(options)) | {"_class_name": "UNet2DModel"}
    network = build_on_meta(diffusers_unet.own_settings(content, tmp_path))
    assert isinstance(network, UNet)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_early_folders_with_all_files_in_one_place_and_old_names_of_attention_are_read(tmp_path: Path) -> None:
    network = unet(**SMALL)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = network.state_dict()
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **SMALL}))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    (tmp_path / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
        )
    )
    assert diffusers_folder.recognizes(tmp_path)
    settings, own = diffusers_folder.read(tmp_path)
    assert settings["variance"]["_target_"].endswith("FixedSmall")
    images = as_array(drawn_by_sampler(*built(settings, own, num_steps=20)))
    expected = drawn_by_pipeline(diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()), num_inference_steps=20)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)


def test_the_labels_of_unet2d_model_are_those_of_its_table(tmp_path: Path) -> None:
    network = unet(**SMALL, num_class_embeds=3, resnet_time_scale_shift="scale_shift")
    network.save_pretrained(tmp_path)
    settings, state = diffusers_folder.read(tmp_path)
    assert "schedule" not in settings
    ours = build_on_meta(settings["model"]).to_empty(device="cpu")
    ours.load_state_dict(state)
    x_t, time, label = torch.randn(3, 1, 8, 8), torch.tensor([0, 400, 999]), torch.tensor([2, 0, 1])
    expected = network(x_t, time, class_labels=label).sample
    torch.testing.assert_close(ours.eval()(x_t, time, Condition(label)), expected, rtol=0, atol=1e-5)


def dit(**options: Any) -> Any:
    """A DiTTransformer2DModel whose blocks have the same embedding, as all published weights have."""
    network: Any = mild(diffusers.DiTTransformer2DModel(out_channels=8, **options))
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    return network


def dit_pipeline(**options: Any) -> Any:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    return diffusers.DiTPipeline(dit(**options), autoencoder.eval(), diffusers.DDIMScheduler(clip_sample=False))


@pytest.mark.parametrize(
    "options",
    [
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8},
        pytest.param(
            {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "sample_size": 32, "norm_eps": 1e-6},
            marks=pytest.mark.full,
            id="DiT-S/2",
        ),
    ],
)
def test_a_dit_folder_draws_the_images_of_dit_pipeline(options: dict[str, Any], tmp_path: Path) -> None:
    pipeline = dit_pipeline(**options)
    index = saved(pipeline, tmp_path) / "model_index.json"
    names = {str(number): f"class {number}" for number in range(1000)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    settings, state = diffusers_folder.read(tmp_path)
    assert settings["class_names"][7] == "class 7"
    assert settings["space"]["scale"] == pipeline.vae.config.scaling_factor
    denoiser, sampler = built(settings, state, num_steps=20)
    assert isinstance(denoiser.network, DiT)
    latents = drawn_by_sampler(denoiser, sampler, 2, torch.tensor([7, 999]))
    images = as_array(pipeline.vae.decode(latents / settings["space"]["scale"]).sample.detach())
    expected = drawn_by_pipeline(pipeline, class_labels=[7, 999], guidance_scale=1.0, num_inference_steps=20)
    assert expected.std() > 0.02
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)


def test_blocks_of_a_dit_with_different_embeddings_are_refused(tmp_path: Path) -> None:
    network = dit(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8)
    network.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.data += 1
    network.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the same embedding of time and labels in all blocks, .* got another .*bias"):
        diffusers_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"time_embedding_type": "fourier"}, r"`time_embedding_type` must be positional in .*, got fourier"),
        ({"act_fn": "mish"}, r"`act_fn` must be silu or swish in .*, got mish"),
        ({"add_attention": False}, r"`add_attention` must be True in .*, got False"),
        ({"class_embed_type": "timestep"}, r"`class_embed_type` must be None in .*, got timestep"),
        ({"center_input_sample": True}, r"`center_input_sample` must be False in .*, got True"),
        ({"mid_block_scale_factor": 1.4}, r"`mid_block_scale_factor` must be 1 or 1.0 in .*, got 1.4"),
        ({"attention_head_dim": 5}, r"`attention_head_dim` must be a divisor of the channels .*, got 5"),
        ({"sample_size": [8, 16]}, r"`sample_size` must be the side length of square images in .*, got \[8, 16\]"),
        (
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            r"`up_block_types` must be blocks with attention at the levels",
        ),
        (
            {"down_block_types": ["KDownBlock2D", "DownBlock2D"]},
            r"`down_block_types` must be a list of 2 of DownBlock2D",
        ),
        ({"layers_per_block": 10**6}, r"must describe the network of its weights file .* got 2000000 blocks"),
        ({"new_option": 3}, r"`new_option` must not be in .*: this setting of UNet2DModel is not known"),
        (
            {"_class_name": "UNet2DConditionModel"},
            r"must be UNet2DModel or DiTTransformer2DModel .*UNet2DConditionModel",
        ),
        ({"block_out_channels": [8, 12]}, r"of another shape: .* instead of"),
        ({"layers_per_block": 2}, r"must contain the tensors of the network that its config describes .missing: "),
    ],
)
def test_a_network_without_a_counterpart_is_refused_by_name(
    option: dict[str, Any], message: str, tmp_path: Path
) -> None:
    unet(**SMALL).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | option))
    with pytest.raises(UserError, match=message):
        diffusers_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            r"the scheduler must be DDPMScheduler or DDIMScheduler .* got PNDMScheduler",
        ),
        ({"beta_schedule": "laplace"}, r"`beta_schedule` must be linear or .* got laplace"),
        ({"prediction_type": "flow"}, r"`prediction_type` must be epsilon or sample or v_prediction .* got flow"),
        ({"clip_sample_range": 2.0}, r"`clip_sample_range` must be 1 or 1.0 .* got 2.0"),
        ({"set_alpha_to_one": False}, r"`set_alpha_to_one` must be True .* got False"),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
            r"`variance_type` must be fixed_small or fixed_large .* got learned_range",
        ),
        ({"thresholding": True, "sample_max_value": 1.5}, r"`sample_max_value` must be 1 or 1.0 .* got 1.5"),
    ],
)
def test_a_scheduler_without_a_counterpart_is_refused_by_name(
    option: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(diffusers.DDIMPipeline(unet(**SMALL), diffusers.DDIMScheduler()), tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | option))
    with pytest.raises(UserError, match=message):
        diffusers_folder.read(tmp_path)


def test_parts_of_a_pipeline_without_a_counterpart_are_named(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"got StableDiffusionPipeline with text_encoder \(CLIPTextModel\), which have no"
    ):
        diffusers_folder.read(tmp_path)


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_damaged_and_hostile_weights_are_refused_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unet(**SMALL).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors cannot be read: "):
        diffusers_folder.read(tmp_path)
    weights.unlink()
    torch.save({**state, "payload": Payload()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin is damaged: "):
        diffusers_folder.read(tmp_path)
    assert not Path("touched").exists()
    torch.save({**state, "surplus": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"must contain the tensors of the network .* \(surplus: surplus\)"):
        diffusers_folder.read(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").unlink()
    index = {"weight_map": {"conv_in.weight": "../other.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"must name files in its folder, got '../other.safetensors'"):
        diffusers_folder.read(tmp_path)
    (tmp_path / "config.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"config.json cannot be read: "):
        diffusers_folder.read(tmp_path)
