"""`src/import_weights.py` and `src/verify.py` on folders: exports to safetensors, and folders of `diffusers`."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diffusion_lab import load_module
from diffusion_lab.errors import UserError
from diffusion_lab.interop.folder_runs import read_diffusers, read_export
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.runs import class_names
from diffusion_lab.runs.imported_run import write_run as write_imported
from diffusion_lab.runs.load import load_config
from diffusion_lab.training.sample_arguments import as_sampler
from support.commands import run
from support.pipelines import GeneratorNoise, as_array, drawn_by_pipeline, mild, saved
from support.written_runs import TINY, write_run

PEERS = str(Path(diffusers.__file__).parents[1])
NODES = ("model", "schedule", "prediction", "process", "variance", "sampler", "time_grid", "clipping", "conditioning")


def done(script: str, *arguments: str, cwd: Path) -> str:
    """Standard output of a command that succeeds."""
    completed = run(script, *arguments, f"hydra.run.dir={cwd / 'log'}", cwd=cwd, PYTHONPATH=PEERS)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ("model=unet_tiny", *TINY, "conditioning=label", "guidance_scale=2", "clipping=none")
    others = ("objective=hybrid", "sampler.num_steps=3", "guidance.interval=[0.3,5.0]", "guidance.rescale=0.5")
    folder = write_run(tmp_path_factory.mktemp("runs") / "conditional", *overrides, *others)
    class_names.save([f"class {number}" for number in range(10)], folder)
    return folder


@pytest.fixture(scope="module")
def export(conditional: Path) -> Path:
    output = conditional.parent / "export"
    done("export.py", f"run={conditional}", "format=safetensors", f"output={output}", cwd=conditional.parent)
    return output


@pytest.fixture(scope="module")
def imported(export: Path) -> Path:
    """A run that was exported to safetensors and imported again."""
    folder = export.parent / "imported"
    printed = done("import_weights.py", str(export), "data=fashion_mini", f"output={folder}", cwd=export.parent)
    assert printed.startswith("format      safetensors: ")
    return folder


def test_a_run_that_is_exported_and_imported_again_has_the_same_weights_settings_and_images(
    conditional: Path, imported: Path
) -> None:
    modules = [load_module(folder) for folder in (conditional, imported)]
    before, after = (module.sampled_network().state_dict() for module in modules)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    configs = [load_config(folder) for folder in (conditional, imported)]
    for name in (*NODES, "guidance_scale", "guidance", "space", "low_resolution"):
        assert configs[0][name] == configs[1][name], name
    images = [module.eval().sample(2, label=9) for module in modules]
    assert torch.equal(*images)
    assert class_names.load(imported)[9] == "class 9"
    assert torch.load(imported / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 40


@pytest.mark.full
def test_an_imported_export_is_sampled_and_evaluated_by_the_commands(imported: Path, tmp_path: Path) -> None:
    settings = ["num_images=2", "label=class 3", f"output_folder={tmp_path / 'images'}"]
    done("sample.py", f"run={imported}", *settings, cwd=tmp_path)
    assert len(list((tmp_path / "images" / "images").glob("*.png"))) == 2
    done("evaluate.py", f"run={imported}", "num_samples=50", "metrics=[fid]", cwd=tmp_path)
    assert list(tmp_path.rglob("metrics.json"))


def small_unet(**options: Any) -> Any:
    settings = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4, "attention_head_dim": 4,
    }  # fmt: skip
    return mild(diffusers.UNet2DModel(**settings | options))


def unet_pipeline() -> Any:
    return diffusers.DDIMPipeline(
        small_unet(), diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    )


def dit_pipeline() -> Any:
    torch.manual_seed(0)
    network = mild(
        diffusers.DiTTransformer2DModel(
            out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8
        )
    )
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4)
    return diffusers.DiTPipeline(network, autoencoder.eval(), diffusers.DDIMScheduler(clip_sample=False))


@pytest.mark.full
def test_a_folder_of_diffusers_is_imported_verified_and_sampled_like_its_pipeline(tmp_path: Path) -> None:
    pipeline = unet_pipeline()
    source = saved(pipeline, tmp_path / "ddim")
    done("import_weights.py", str(source), f"output={tmp_path / 'run'}", cwd=tmp_path)
    printed = done("verify.py", f"run={tmp_path / 'run'}", "against=diffusers", cwd=tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == [
        *("output_float64", "output_float32", "trajectory_float32")
    ]
    entry = json.loads((tmp_path / "run" / "provenance.json").read_text())["verification"][-1]
    assert entry["against"] == "diffusers"
    assert 0 < max(entry["largest_relative_differences"].values()) < 1e-5
    module = load_module(tmp_path / "run")
    sampler = as_sampler(None, module.sampler, module.process, num_steps=20)
    images = as_array(sampler.sample(module.denoiser(), GeneratorNoise(2, 1, 8, 8), None))
    expected = drawn_by_pipeline(pipeline, num_inference_steps=20)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)


@pytest.mark.full
def test_verify_finds_that_the_weights_of_a_folder_of_diffusers_have_changed(tmp_path: Path) -> None:
    pipeline = unet_pipeline()
    source = saved(pipeline, tmp_path / "ddim")
    done("import_weights.py", str(source), f"output={tmp_path / 'run'}", cwd=tmp_path)
    pipeline.unet.conv_in.bias.data += 0.1
    saved(pipeline, source)
    completed = run("verify.py", f"run={tmp_path / 'run'}", "against=diffusers", cwd=tmp_path, PYTHONPATH=PEERS)
    assert completed.returncode == 1
    assert "must equal the original up to tolerance=0.0001, got a relative difference of " in completed.stderr


@pytest.mark.full
def test_a_dit_folder_is_imported_with_its_autoencoder_and_verified(tmp_path: Path) -> None:
    source = saved(dit_pipeline(), tmp_path / "dit")
    done("import_weights.py", str(source), f"output={tmp_path / 'run'}", cwd=tmp_path)
    done("verify.py", f"run={tmp_path / 'run'}", "against=diffusers", cwd=tmp_path)
    settings = ["num_images=1", "label=7", "sampler.num_steps=2", f"output_folder={tmp_path / 'images'}"]
    done("sample.py", f"run={tmp_path / 'run'}", *settings, cwd=tmp_path)
    assert load_config(tmp_path / "run").data.resolution == 16


def test_the_format_of_a_folder_is_detected(export: Path, tmp_path: Path) -> None:
    assert read_foreign(export, "auto", Options())[0] == "safetensors"
    assert read_foreign(saved(unet_pipeline(), tmp_path / "ddim"), "auto", Options())[0] == "diffusers"
    with pytest.raises(UserError, match=r"must be a checkpoint file of other code, or a folder of safetensors or"):
        read_foreign(tmp_path, "auto", Options())


def test_a_folder_without_a_scheduler_needs_a_schedule(tmp_path: Path) -> None:
    small_unet().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"schedule must be given \(schedule=linear\) for .*, which has no scheduler"):
        read_diffusers(tmp_path, Options())
    overrides = read_diffusers(tmp_path, Options(given=frozenset({"schedule"}))).overrides
    assert "variance=fixed_large" in overrides


def changed(export: Path, folder: Path, **nodes: Any) -> Path:
    """A copy of an export with other values in its config."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(export / "model.safetensors")
    content = json.loads((export / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | nodes))
    return folder


NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"guidance_scale": "${oc.env:HOME}"}, r"must contain plain values, got \$\{oc.env:HOME\}"),
        ({"guidance_scale": NESTED}, r"must have at most 20 levels, got more"),
        ({"data": {"resolution": "8 model=x", "channels": 1}}, r"`resolution` must be a whole number of at least 1"),
        ({"step": -1}, r"`step` must be a whole number of at least 0 .*, got -1"),
        ({"guidance": {"guide": "RUN"}}, r"`guidance` must have the settings interval, rescale, num_channels in"),
        ({"guidance": {"rescale": "0 x=1"}}, r"guidance.rescale must be a number, numbers or null in .*, got 0 x=1"),
        ({"class_names": [1]}, r"`class_names` must be a list of texts in .*, got \[1\]"),
    ],
)
def test_a_config_of_an_export_with_other_values_is_refused(
    nodes: dict[str, Any], message: str, export: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_export(changed(export, tmp_path / "other", **nodes), Options())


def test_code_that_the_config_of_an_export_names_needs_trust_and_is_not_run(export: Path, tmp_path: Path) -> None:
    node = {"_target_": "pathlib.Path.mkdir", "self": {"_target_": "pathlib.Path", "_args_": [str(tmp_path / "x")]}}
    source = changed(export, tmp_path / "other", sampler=node)
    found: Imported = read_export(source, Options())
    with pytest.raises(UserError, match=r"`trust` must name the packages .*sampler names pathlib.Path.mkdir"):
        write_imported(
            tmp_path / "run", "train", found.overrides, found.weights, step=0, described={}, nodes=found.nodes
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(given=frozenset({"sampler.num_steps"})), r"sampler must not be given, because .*config.json contains"),
        (Options(resolution=8), r"resolution must be null, because .* contains this setting, got 8"),
    ],
)
def test_settings_that_an_export_contains_are_not_accepted_from_the_command_line(
    options: Options, message: str, export: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_export(export, options)
